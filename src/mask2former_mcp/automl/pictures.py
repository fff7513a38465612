"""Pictures of a study: optimisation history, parameter importances, parallel coordinates. Optuna draws them.

matplotlib and scikit-learn take seconds to load: only at the end of a study, not at each start of its supervisor.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from mask2former_mcp.automl.growth import reached

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTORY, IMPORTANCES, PARALLEL = NAMES = (
    "optimization_history.png", "param_importances.png", "parallel_coordinate.png"
)  # fmt: skip
_FEWEST = {HISTORY: 1, IMPORTANCES: 3, PARALLEL: 2}  # measured trials that each needs to say anything
_DPI = 120
_PALEST = 0.35  # of the blues: the worst trial, on white


def draw(study: Study, folder: Path, *, metric: str) -> tuple[list[Path], dict[str, str]]:
    """Write what the trials allow, each file whole or not at all; the files, and why each other one is not there.

    A trial that was stopped early is drawn with what it had reached.
    """
    import matplotlib

    matplotlib.use("Agg")  # before Optuna imports pyplot: there is no screen here
    from optuna.visualization import matplotlib as plots

    trials = study.get_trials(deepcopy=False)
    history, compared = _counted(trials, _shown(trials)), _counted(trials, _whole(trials, _shown(trials)))
    credited = _counted(trials, _whole(trials, reached(trials)))
    label = f"{metric} when the trial ended"
    names = [metric, *_keys(study)]
    drawers: dict[str, tuple[Study, Callable[[], object]]] = {
        HISTORY: (history, lambda: _by_whole_trials(plots.plot_optimization_history(history, target_name=label))),
        IMPORTANCES: (credited, lambda: plots.plot_param_importances(credited, target_name=metric)),
        PARALLEL: (compared, lambda: _legible(plots.plot_parallel_coordinate(compared, target_name=label), names)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written, missing = [], {}
    for name, (source, drawer) in drawers.items():
        count = len(source.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        if count < _FEWEST[name]:
            missing[name] = f"{count} trial(s) of the search space were measured, and it needs {_FEWEST[name]}"
            continue
        if name == IMPORTANCES and not importances(study):
            missing[name] = "all trials came out alike: no parameter made a difference"
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)  # layout remarks
            drawer()
            written.append(_saved(folder / name))
    return written, missing


def importances(study: Study) -> dict[str, float]:
    """How much of the spread each parameter explains (sums to 1); {} where all trials ended alike or are too few.

    A trial that was stopped early counts as what it would have reached.
    """
    trials = study.get_trials(deepcopy=False)
    values = _whole(trials, reached(trials))
    if len(values) < _FEWEST[IMPORTANCES] or len(set(values.values())) < 2:
        return {}
    from optuna.importance import get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            found = get_param_importances(_counted(trials, values))
        except (ValueError, RuntimeError):  # fANOVA refuses samples without variance
            return {}
    return {name: round(float(share), 4) for name, share in found.items()}


def _shown(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Trial number -> its value; of one that was stopped early, what it had reached by then."""
    values = {t.number: t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None}
    stopped = [t for t in trials if t.state == TrialState.PRUNED and t.intermediate_values]
    return {**values, **{t.number: max(t.intermediate_values.values()) for t in stopped}}


def _whole(trials: Sequence[FrozenTrial], values: Mapping[int, float]) -> dict[int, float]:
    """Of the trials that lie in the search space: trial 0 may have values outside it."""
    keys = {key for trial in trials for key in trial.params}
    return {number: value for number, value in values.items() if trials[number].params.keys() == keys}


def _counted(trials: Sequence[FrozenTrial], values: Mapping[int, float]) -> Study:
    """A study in memory in which every trial with a value is a finished one, and keeps its number."""
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        known = values.get(trial.number)
        study.add_trial(
            create_trial(state=TrialState.FAIL)
            if known is None
            else create_trial(params=trial.params, distributions=trial.distributions, value=known)
        )
    return study


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
        lines.set_clip_on(False)  # the best and the worst run along the edges
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
