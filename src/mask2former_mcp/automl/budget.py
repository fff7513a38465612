"""What a study may cost: trials, epochs, how many at once; and the words that say so before anything starts.

Left alone, a study on one device costs at most three times the plain run: trial 0 is the plain run in full, the others
go through short rungs and only the best third of each goes on. On a machine without a GPU it is one trial, the plain
run, which a resume may turn into a search (resume.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from mask2former_mcp.automl.algorithms import Algorithm, algorithm, require_numbers
from mask2former_mcp.automl.space import Space
from mask2former_mcp.jobs.plan import Estimate
from mask2former_mcp.planning.request import AutomlSettings

REDUCTION = 3
COST_LIMIT = 3.0  # of the plain run, when nobody says how many trials
MOST_TRIALS = 24  # by default, however many devices there are
BATCH_KEY = "dataset.train.batch_size"


class StudySettings(BaseModel):
    """Everything a study is, beside the resolved spec that trial 0 runs. Part of the Plan, and of its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: str
    metric: str
    max_trials: int
    max_concurrent: int
    epochs: int  # of a trial that is never stopped early
    first_rung: int  # epochs; equal to `epochs` where nothing can be stopped early
    reduction_factor: int
    seed: int
    time_budget_s: float | None = None
    total_epochs: int | None = None  # of all trials together; None: max_trials alone bounds it
    space: Space
    adjustments: tuple[str, ...] = ()

    def rungs(self) -> list[int]:
        """Epochs after which a trial may be stopped."""
        rungs, at = [], self.first_rung
        while at < self.epochs:
            rungs.append(at)
            at *= self.reduction_factor
        return rungs

    def next_rung(self, epochs: int) -> int:
        """Where a trial that has trained `epochs` is looked at next; its last epoch at the latest."""
        return next((rung for rung in self.rungs() if rung > epochs), self.epochs)


@dataclass(frozen=True, slots=True)
class Devices:
    """What trials can run on. `count` is GPUs, or the processor cores of a machine without one."""

    kind: str  # gpu | cpu
    count: int
    per_trial: int

    @property
    def at_once(self) -> int:
        return max(1, self.count // max(self.per_trial, 1))


def settle(
    asked: AutomlSettings, spec: Mapping[str, Any], devices: Devices, space: Space, metric: str
) -> StudySettings:
    """Defaults for what was not asked. `spec` is the resolved train spec. InvalidRequest for what cannot be."""
    chosen = algorithm(asked.algorithm)
    train = spec["train"]
    epochs = int(train["num_epochs"])
    factor = asked.reduction_factor or REDUCTION
    first = first_rung(chosen, epochs, factor)
    trials = asked.max_trials or default_trials(chosen, epochs, first, factor, devices)
    if not space.parameters:
        trials = 1
    if trials == 1:
        first = epochs  # there is nobody to be compared with on the way
    else:
        require_numbers(chosen, space.numbers)
    concurrent, adjustments = at_once(asked, devices)
    adjustments += _space_words(space, is_asked=asked.search_space is not None)
    adjustments += interval_words(train, first)
    bounded = asked.max_trials is None and trials > 1
    seed = asked.seed if asked.seed is not None else max(0, int(train.get("seed", 0)))
    return StudySettings(
        algorithm=chosen.name,
        metric=asked.metric or metric,
        max_trials=trials,
        max_concurrent=min(concurrent, trials),
        epochs=epochs,
        first_rung=first,
        reduction_factor=factor,
        seed=seed,
        time_budget_s=asked.time_budget_minutes * 60 if asked.time_budget_minutes else None,
        total_epochs=math.floor(COST_LIMIT * epochs) * _default_width(devices) if bounded else None,
        space=space,
        adjustments=tuple(adjustments),
    )


def default_trials(chosen: Algorithm, epochs: int, first: int, factor: int, devices: Devices) -> int:
    """As many trials as COST_LIMIT pays for when one in `factor` passes each rung; one on a CPU."""
    if devices.kind == "cpu":
        return 1
    expected = expected_share(chosen, epochs, first, factor)
    others = math.floor((COST_LIMIT - 1.0) / expected + 1e-9)
    return min(1 + others * _default_width(devices), MOST_TRIALS)


def first_rung(chosen: Algorithm, epochs: int, factor: int) -> int:
    """Two rungs below the last epoch where there is room, else one; none for an algorithm that stops nobody."""
    if chosen.pruner == "none" or epochs < factor:
        return epochs
    return math.ceil(epochs / factor**2) if epochs >= factor**2 else math.ceil(epochs / factor)


def expected_share(chosen: Algorithm, epochs: int, first: int, factor: int) -> float:
    """Share of a whole run that a trial other than the first is expected to train."""
    if chosen.pruner == "none" or first >= epochs:
        return 1.0
    share, at, alive = 0.0, 0, 1.0
    rung = first
    while True:
        end = min(rung, epochs)
        share += alive * (end - at) / epochs
        if end == epochs:
            return share
        at, rung, alive = end, rung * factor, alive / factor


def clamped_intervals(train: Mapping[str, Any], first: int) -> dict[str, int]:
    """Spec key -> the interval that it gets, where validation or checkpoints would miss the first rung.

    A trial wins with an epoch that was measured and kept, so each that is measured is kept. An interval in steps stays.
    """
    by_epoch = train.get("checkpoint_interval_unit", "epoch") == "epoch"
    measured = int(train.get("validation_interval", 1))
    kept = int(train.get("checkpoint_interval", 1)) if by_epoch else 1
    if max(measured, kept) <= first:
        return {}
    changed = {"train.validation_interval": first} if measured > first else {}
    measured = min(measured, first)
    return changed if measured % kept == 0 else {**changed, "train.checkpoint_interval": measured}


def interval_words(train: Mapping[str, Any], first: int) -> list[str]:
    return [
        f"{key}: every {interval} epoch(s), not {train[key.rpartition('.')[2]]}, so that each rung is measured"
        for key, interval in clamped_intervals(train, first).items()
    ]


def batch_cap(images: int | None, train: Mapping[str, Any]) -> dict[str, int]:
    """The largest batch that still makes one step an epoch; {} when the number of images is not known."""
    if not images:
        return {}
    return {BATCH_KEY: max(1, images // (int(train.get("num_gpus", 1)) * int(train.get("num_nodes", 1))))}


def capped_batch(values: Mapping[str, Any], cap: Mapping[str, int]) -> tuple[dict[str, Any], list[str]]:
    """Values with batch settings that would make zero steps lowered; and what was adjusted, in words."""
    kept, notes = dict(values), []
    for key, most in cap.items():
        if isinstance(kept.get(key), int) and kept[key] > most:
            notes.append(f"{key} lowered from {kept[key]} to {most}: the training split has no more images for a step")
            kept[key] = most
    return kept, notes


def expected_epochs(settings: StudySettings) -> float:
    """Epochs that all trials together are expected to train."""
    share = expected_share(
        algorithm(settings.algorithm), settings.epochs, settings.first_rung, settings.reduction_factor
    )
    expected = settings.epochs * (1 + (settings.max_trials - 1) * share)
    return min(expected, float(settings.total_epochs)) if settings.total_epochs else expected


def at_most_epochs(settings: StudySettings) -> int:
    most = settings.epochs * settings.max_trials
    return min(most, settings.total_epochs) if settings.total_epochs else most


def estimate(plain: Estimate, settings: StudySettings) -> Estimate:
    """The study's estimate out of the plain run's, which it is where there is one trial."""
    if settings.max_trials == 1:
        return plain.model_copy(update={"seconds": _in_time(plain.seconds, settings)})
    factor = expected_epochs(settings) / settings.epochs
    seconds = None if plain.seconds is None else plain.seconds * factor / settings.max_concurrent
    return plain.model_copy(
        update={
            "gpus": plain.gpus * settings.max_concurrent,
            "seconds": _in_time(seconds, settings),
            "steps": None if plain.steps is None else round(plain.steps * factor),
            # Each finished trial keeps one checkpoint; while it trains it has them all.
            "disk_gb": None if plain.disk_gb is None else round(plain.disk_gb * (settings.max_concurrent + 1), 2),
            "basis": f"{plain.basis}; {factor:.1f} plain runs in all, {settings.max_concurrent} at once",
        }
    )


def _in_time(seconds: float | None, settings: StudySettings) -> float | None:
    return seconds if seconds is None or settings.time_budget_s is None else min(seconds, settings.time_budget_s)


def cost_words(plain: Estimate, settings: StudySettings) -> str:
    """One sentence for the Plan: trials x epochs x time, before anything starts."""
    rungs = settings.rungs()
    early = f", weak ones stop after {' or '.join(map(str, rungs))}" if rungs else ""
    words = (
        f"AutoML search: at most {settings.max_trials} trials ({settings.algorithm}, {settings.max_concurrent} at "
        f"once) of {settings.epochs} epochs{early}; about {expected_epochs(settings):.0f} epochs in all, never more "
        f"than {at_most_epochs(settings)} (a plain run: {settings.epochs})"
    )
    if plain.seconds is not None:
        taken = plain.seconds * expected_epochs(settings) / settings.epochs / settings.max_concurrent / 3600
        words += f"; {hours(taken)} estimated from: {plain.basis}"
    return (
        words
        + clock_words(settings)
        + ". Searched: "
        + "; ".join(f"{key} in {span}" for key, span in settings.space.summary().items())
    )


def clock_words(settings: StudySettings) -> str:
    return "" if settings.time_budget_s is None else f"; stopped after {hours(settings.time_budget_s / 3600)}"


def _space_words(space: Space, *, is_asked: bool) -> list[str]:
    """What the study does not search as it was asked; of a space that nobody asked for, where the data cuts it."""
    cut = [f"{key} is searched in {words}" for key, words in space.cut.items()]
    return [*cut, *(f"{key} is not searched: {why}" for key, why in space.left_out.items() if is_asked)]


def at_once(asked: AutomlSettings, devices: Devices) -> tuple[int, list[str]]:
    if asked.max_concurrent is None or asked.max_concurrent <= devices.at_once:
        return asked.max_concurrent or _default_width(devices), []
    kind = "GPU(s)" if devices.kind == "gpu" else "processor core(s)"
    note = f"max_concurrent lowered from {asked.max_concurrent} to {devices.at_once}: {devices.count} {kind} here"
    return devices.at_once, [note]


def _default_width(devices: Devices) -> int:
    """How many devices' worth of trials a study left alone takes: those that it can use side by side."""
    return devices.at_once if devices.kind == "gpu" else 1


def hours(count: float) -> str:
    return f"{count:.1f} h" if count >= 1 else f"{max(1, round(count * 60))} min"
