"""When a trial is stopped early: asynchronous successive halving, decided from the reports alone.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), algorithm 2: at each rung a trial goes on
if it is among the best 1/eta of those that have reached the rung so far. Brackets (hyperband) start at later rungs.

Optuna's own pruner of that kind keeps its verdicts in the storage and gives another answer when asked twice; a
supervisor that was killed between the verdict and the deed must decide the same again, so this one keeps nothing.
"""

from collections.abc import Mapping

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class RungPruner(BasePruner):
    """Values are maximised. Steps are epochs trained, from 1; a rung counts at the first report at or after it."""

    def __init__(self, *, first: int, longest: int, reduction_factor: int, brackets: bool = False) -> None:
        self.rungs = [r for r in _powers(first, reduction_factor) if r < longest]
        self._factor = reduction_factor
        self._brackets = len(self.rungs) + 1 if brackets else 1

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None:
            return False
        reports = trial.intermediate_values
        for rung in self._of(trial.number):
            if step < rung or any(rung <= earlier < step for earlier in reports):
                continue  # not there yet, or looked at before
            own = reports[step]
            rivals = [
                value
                for other in study.get_trials(deepcopy=False)
                if other.number != trial.number
                and other.state != TrialState.FAIL  # it will never go on, so it takes no place among those that do
                and rung in self._of(other.number)
                and (value := at_rung(other.intermediate_values, rung)) is not None
            ]
            passing = max(1, (len(rivals) + 1) // self._factor)
            if sum(value > own for value in rivals) >= passing:
                return True
        return False

    def _of(self, number: int) -> list[int]:
        """The rungs of a trial's bracket. Trial 0 passes all of them: it is what the others are measured by."""
        return self.rungs if number == 0 else self.rungs[number % self._brackets :]


def at_rung(reports: Mapping[int, float], rung: int) -> float | None:
    """The value of the first report at or after the rung; None: not there yet."""
    step = min((step for step in reports if step >= rung), default=None)
    return None if step is None else reports[step]


def _powers(first: int, factor: int) -> list[int]:
    return [first * factor**k for k in range(32)]
