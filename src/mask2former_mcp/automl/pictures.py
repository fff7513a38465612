"""Pictures of a study: optimisation history, parameter importances, parallel coordinates. Optuna draws them.

matplotlib and scikit-learn take seconds to load: only at the end of a study, not at each start of its supervisor.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = ("optimization_history.png", "param_importances.png", "parallel_coordinate.png")
_FEWEST = {NAMES[0]: 1, NAMES[1]: 3, NAMES[2]: 2}  # finished trials that each needs to say anything
_DPI = 120
_PALEST = 0.35  # of the blues: the worst trial, on white


def draw(study: Study, folder: Path, *, metric: str) -> list[Path]:
    """Write what the finished trials allow, each file whole or not at all; returns the files."""
    import matplotlib

    matplotlib.use("Agg")  # before Optuna imports pyplot: there is no screen here
    from optuna.visualization import matplotlib as plots

    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    drawers: dict[str, Callable[[], object]] = {
        NAMES[0]: lambda: _by_whole_trials(plots.plot_optimization_history(study, target_name=metric)),
        NAMES[1]: lambda: plots.plot_param_importances(study, target_name=metric),
        NAMES[2]: lambda: _legible(plots.plot_parallel_coordinate(study, target_name=metric), [metric, *_keys(study)]),
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


def _keys(study: Study) -> list[str]:
    """The last parts of the searched keys in Optuna's order; a whole key where two end alike."""
    keys = sorted({key for trial in study.get_trials(deepcopy=False) for key in trial.params})
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def _by_whole_trials(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legible(axes: "Axes", names: Sequence[str]) -> None:
    """Optuna draws the worst trial white on light grey, and cuts the names of the keys."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    blues = colormaps["Blues"]
    for lines in axes.collections:
        lines.set_cmap(ListedColormap([blues(_PALEST + (1 - _PALEST) * step / 255) for step in range(256)]))
        lines.set_linewidth(2)
    for each in axes.figure.axes:
        each.grid(visible=False)
    axes.set_facecolor("white")
    axes.grid(visible=True, axis="x", color="0.7")
    if len(names) == len(axes.get_xticks()):
        axes.set_xticks(axes.get_xticks(), names, rotation=0 if len(names) < 6 else 330)


def _saved(path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure = plt.gcf()
    figure.set_size_inches(9, 5)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=_DPI, bbox_inches="tight", format="png")
    plt.close("all")
    temporary.replace(path)
    return path
