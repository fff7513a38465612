"""The Optuna study behind a study job: proposals, reports, pruning decisions, results. All of it lives in one file.

Storage is `<job folder>/study.sqlite3`, so that a resumed study is the same study and delete_job takes it along. The
trial's number is the only key: which job ran it follows from the number (see trials.py), never the other way round.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from mask2former_mcp.automl import samplers
from mask2former_mcp.automl.algorithms import algorithm
from mask2former_mcp.automl.budget import StudySettings

FILE = "study.sqlite3"
_BUSY_S = 30

logging.getLogger("alembic").setLevel(logging.WARNING)
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, slots=True)
class OpenTrial:
    """A trial without a result. `values` are spec values; `reported` maps epochs trained to the best value by then."""

    number: int
    values: dict[str, Any]
    reported: dict[int, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class Search:
    """Asked by one process at a time: the study's supervisor."""

    def __init__(self, folder: Path, settings: StudySettings, resolved: Mapping[str, Any]) -> None:
        """`resolved`: the flat spec that trial 0 runs."""
        self.settings = settings
        self.resolved = {key: resolved[key] for key in settings.space.keys if key in resolved}
        self._algorithm = algorithm(settings.algorithm)
        self._distributions = samplers.distributions(settings.space)
        self._live: dict[int, Trial] = {}
        connection = {"connect_args": {"timeout": _BUSY_S}}
        self._storage = RDBStorage(f"sqlite:///{folder / FILE}", engine_kwargs=connection)
        pruner = samplers.pruner(
            self._algorithm,
            first_rung=settings.first_rung,
            longest=settings.epochs,
            reduction_factor=settings.reduction_factor,
        )
        # Trials are compared at one number of epochs: an only trial that trains on begins anew, here but not as a job.
        name = f"{settings.epochs} epochs"
        self.study: Study = optuna.create_study(
            storage=self._storage, study_name=name, direction="maximize", load_if_exists=True, pruner=pruner
        )
        if not self.trials():
            self.study.enqueue_trial(settings.space.encode(self._inside()))

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def trials(self) -> Sequence[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def started(self) -> int:
        """How many trials have been proposed so far, whatever became of them."""
        return sum(trial.state != TrialState.WAITING for trial in self.trials())

    def open_trials(self) -> list[OpenTrial]:
        """Proposed and without a result. One that was cut off in the middle of its proposal is completed first."""
        return [self._open(trial) for trial in self.trials() if trial.state == TrialState.RUNNING]

    def propose(self) -> OpenTrial:
        """The next trial; number 0 is the resolved spec."""
        waiting = [trial.number for trial in self.trials() if trial.state == TrialState.WAITING]
        self._seed(min(waiting) if waiting else len(self.trials()))
        trial = self.study.ask()
        self._live[trial.number] = trial
        return self._completed(trial)

    def report(self, number: int, epochs: int, best: float) -> None:
        """The best value within the first `epochs` epochs. Said again, it changes nothing."""
        trial = self._trial(number)
        if epochs not in self._frozen(number).intermediate_values:
            trial.report(best, epochs)

    def should_stop(self, number: int) -> bool:
        """Whether the pruner stops it after what was reported last. Trial 0, the plain run, is never stopped."""
        return number != 0 and self._trial(number).should_prune()

    def note(self, number: int, **notes: Any) -> None:
        """Remember something with the trial; JSON values."""
        trial = self._trial(number)
        for name, value in notes.items():
            trial.set_user_attr(name, value)

    def finish(self, number: int, value: float) -> None:
        self.study.tell(number, value, state=TrialState.COMPLETE, skip_if_finished=True)
        self._live.pop(number, None)

    def stop(self, number: int) -> None:
        """Ended before its last epoch, by the pruner, the budget or a person."""
        self.study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        self._live.pop(number, None)

    def fail(self, number: int) -> None:
        """No result at all: never a value, never promoted."""
        self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        self._live.pop(number, None)

    # -- inside --

    def _inside(self) -> dict[str, Any]:
        """What trial 0 has of the space. A resolved value outside it is run and is no parameter: clipped into the space
        it would be a point that nobody ran."""
        space, resolved = self.settings.space, self.resolved
        return {p.key: resolved[p.key] for p in space.parameters if p.key in resolved and p.contains(resolved[p.key])}

    def _seed(self, number: int) -> None:
        self.study.sampler = samplers.sampler(
            self._algorithm, self.settings.space, seed=self.settings.seed, trial=number
        )

    def _open(self, frozen: FrozenTrial) -> OpenTrial:
        if "values" in frozen.user_attrs:
            return OpenTrial(
                frozen.number,
                frozen.user_attrs["values"],
                dict(frozen.intermediate_values),
                {name: value for name, value in frozen.user_attrs.items() if name != "values"},
            )
        self._seed(frozen.number)
        return self._completed(self._trial(frozen.number))

    def _completed(self, trial: Trial) -> OpenTrial:
        """Every parameter drawn. Those drawn before a crash stand; the others come out as they would have."""
        keys = self._inside() if trial.number == 0 else self._distributions
        raw = {name: _suggest(trial, name, self._distributions[name]) for name in sorted(keys)}
        values = dict(self.resolved) if trial.number == 0 else self.settings.space.decode(raw)
        trial.set_user_attr("values", values)
        return OpenTrial(trial.number, values)

    def _trial(self, number: int) -> Trial:
        if number not in self._live:
            self._live[number] = Trial(self.study, self._frozen(number)._trial_id)
        return self._live[number]

    def _frozen(self, number: int) -> FrozenTrial:
        return self.trials()[number]


def _suggest(trial: Trial, name: str, distribution: optuna.distributions.BaseDistribution) -> Any:
    match distribution:
        case optuna.distributions.FloatDistribution():
            return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
        case optuna.distributions.IntDistribution():
            low, high, step = distribution.low, distribution.high, distribution.step
            return trial.suggest_int(name, low, high, step=step, log=distribution.log)
        case optuna.distributions.CategoricalDistribution():
            return trial.suggest_categorical(name, distribution.choices)
    raise TypeError(f"{name}: {distribution}")
