"""A legal spec beside this machine: what the job will take, and what speaks against starting it here and now."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from mask2former_mcp import policy
from mask2former_mcp.bundle import Bundle
from mask2former_mcp.datasets.sources import NOT_THERE
from mask2former_mcp.errors import NotAvailable, StoreError
from mask2former_mcp.jobs.plan import Estimate
from mask2former_mcp.lineage import Earlier
from mask2former_mcp.planning import place
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import ActionRequest
from mask2former_mcp.planning.rules import Rules, Situation

_HOUR_S = 3600
_LARGE_GB, _LARGE_PART = 5.0, 0.1  # of the free disk
_CANNOT = "cannot start yet: "


def judge(
    request: ActionRequest,
    situation: Situation,
    lacks: Sequence[str],
    automl: policy.Decision,
    bundle: Bundle,
    rules: Rules,
    earlier: Callable[[str], Sequence[Earlier]],
    free_gb: float,
) -> tuple[Estimate, tuple[str, ...]]:
    """The estimate and notes; an error for a spec that breaks a rule, or for a job that cannot start here. With
    dry_run, what cannot run yet is a note.

    lacks: what its platform is known to lack. earlier: what finished jobs of an action took. free_gb: where the results
    will be.
    """
    machine = situation.machine
    gpu_notes, no_gpus = place.check_gpus(situation.spec, situation.action, machine, situation.platform)
    search = getattr(request, "automl", None)
    is_searched = automl.route == "automl"
    found = rules.check(replace(situation, metric=search.metric if search and is_searched else None))
    measured, store_notes = _measured(request, situation.action, earlier)
    estimate = rules.estimate(situation, measured)
    missing = (*lacks, *no_gpus, *found.missing)
    if missing and not request.dry_run:
        raise NotAvailable(
            "; ".join(missing),
            fix="Mend what is named, or ask for another platform or runtime; dry_run=true shows the whole Plan.",
        )
    notes = [*gpu_notes, *found.warnings, *_slow(request, estimate, machine, bundle), *_tight(estimate, machine)]
    notes += _large(situation, estimate, free_gb)
    if search and not is_searched:
        notes.append("automl settings are given, but this run trains directly: they are not used")
    return estimate, (*notes, *store_notes, *(f"{_CANNOT}{reason}" for reason in missing))


def by_urgency(notes: Iterable[str]) -> tuple[str, ...]:
    """Each once. What keeps the job from starting is read first, what was merely left out last."""
    return tuple(sorted(dict.fromkeys(notes), key=_urgency))


def worth_telling(notes: Iterable[str]) -> Iterator[str]:
    """Without the files that are not there and that nobody reads: for them there is the Plan."""
    return (note for note in notes if not note.startswith(f"left out, {NOT_THERE} "))


def _urgency(note: str) -> int:
    return 0 if note.startswith(_CANNOT) else 2 if note.startswith("left out") else 1


def _measured(
    request: ActionRequest, action: str, earlier: Callable[[str], Sequence[Earlier]]
) -> tuple[Sequence[Earlier], tuple[str, ...]]:
    """What finished jobs took, and notes. A dry run starts nothing, so a store that does not open only warns."""
    try:
        return earlier(action), ()
    except StoreError as error:
        if not request.dry_run:
            raise
        return (), (f"{_CANNOT}{error.message}. {error.fix}",)


def _slow(request: ActionRequest, estimate: Estimate, machine: Machine, bundle: Bundle) -> Iterator[str]:
    """A published network on a machine without a GPU takes hours: say so before it starts."""
    if estimate.seconds is None or estimate.seconds < _HOUR_S or machine.gpus:
        return
    note = f"this is about {estimate.seconds / _HOUR_S:.0f} hour(s) on this machine's CPU"
    has_choice = "preset" in type(request).model_fields and getattr(request, "preset", None) is None
    if has_choice and "mini" in bundle.presets:
        note += '; preset="mini" is a network that trains here in minutes'
    yield note


def _tight(estimate: Estimate, machine: Machine) -> Iterator[str]:
    """More memory than there is: the job would be killed, or crawl."""
    have, what = machine.gpu_memory_gb, "GPU"
    if have is None:
        have, what = machine.memory_gb, "machine"
    if estimate.memory_gb is not None and estimate.memory_gb > have:
        yield (
            f"about {estimate.memory_gb:.0f} GB of memory are needed, and this {what} has {have:.0f} GB: make the "
            "batch, the images or the network smaller"
        )


def _large(situation: Situation, estimate: Estimate, free_gb: float) -> Iterator[str]:
    """Checkpoints of every epoch add up: say so before the disk is full."""
    if situation.action == "train" and (estimate.disk_gb or 0.0) > min(_LARGE_GB, _LARGE_PART * free_gb):
        interval = situation.spec["train"]["checkpoint_interval"]
        yield (
            f"the checkpoints will take about {estimate.disk_gb:.1f} GB, and {free_gb:.0f} GB are free: a larger "
            f"train.checkpoint_interval than {interval} keeps fewer"
        )
