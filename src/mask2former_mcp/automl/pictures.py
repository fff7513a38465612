"""Pictures of a study: optimisation history, parameter importances, parallel coordinates. Optuna draws them.

matplotlib and scikit-learn take seconds to load: only at the end of a study, not at each start of its supervisor.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import TrialState

NAMES = ("optimization_history.png", "param_importances.png", "parallel_coordinate.png")
_FEWEST = {NAMES[0]: 1, NAMES[1]: 3, NAMES[2]: 2}  # finished trials that each needs to say anything
_DPI = 120


def draw(study: Study, folder: Path, *, metric: str) -> list[Path]:
    """Write what the finished trials allow, each file whole or not at all; returns the files."""
    import matplotlib

    matplotlib.use("Agg")  # before Optuna imports pyplot: there is no screen here
    from optuna.visualization import matplotlib as plots

    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    drawers: dict[str, Callable[[], object]] = {
        NAMES[0]: lambda: plots.plot_optimization_history(study, target_name=metric),
        NAMES[1]: lambda: plots.plot_param_importances(study, target_name=metric),
        NAMES[2]: lambda: plots.plot_parallel_coordinate(study, target_name=metric),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, drawer in drawers.items():
        if len(finished) < _FEWEST[name] or (name == NAMES[1] and not importances(study)):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)  # layout remarks
            drawer()
            written.append(_saved(folder / name))
    return written


def importances(study: Study) -> dict[str, float]:
    """How much of the spread each parameter explains (sums to 1); {} where all trials ended alike or are too few."""
    values = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if len(values) < 2:
        return {}
    from optuna.importance import get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return {name: round(float(share), 4) for name, share in get_param_importances(study).items()}
        except (ValueError, RuntimeError):  # fANOVA refuses samples without variance
            return {}


def _saved(path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure = plt.gcf()
    figure.set_size_inches(9, 5)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=_DPI, bbox_inches="tight", format="png")
    plt.close("all")
    temporary.replace(path)
    return path
