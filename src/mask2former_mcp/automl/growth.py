"""What a trial that was stopped early counts as, beside trials that ran to their end."""

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState


def reached(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Trial number -> what it reached, or would have: a trial that was stopped early is credited with the growth that
    finished trials showed after the same epoch. Without that, whatever ran longest would look best.
    """
    finished = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    values = {t.number: float(t.value) for t in finished if t.value is not None}
    for trial in trials:
        if trial.state != TrialState.PRUNED or trial.last_step is None:
            continue
        shown = trial.intermediate_values[trial.last_step]
        growth = [g for t in finished if (g := _growth(t, trial.last_step)) is not None]
        values[trial.number] = shown * float(np.median(growth)) if growth else shown
    return values


def _growth(trial: FrozenTrial, step: int) -> float | None:
    """Final value over the value after `step` epochs; None where it had none by then."""
    earlier = [value for at, value in trial.intermediate_values.items() if at <= step]
    if not earlier or trial.value is None or max(earlier) <= 0:
        return None
    return float(trial.value) / max(earlier)
