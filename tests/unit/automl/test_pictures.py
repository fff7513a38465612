"""The pictures of a study: drawn on white, the worst trial too."""

from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from PIL import Image

from mask2former_mcp.automl import pictures

RATES = {"train.optim.lr": FloatDistribution(1e-5, 1e-3, log=True), "train.optim.weight_decay": FloatDistribution(0, 1)}
VALUES = [0.02, 0.5, 0.62, 0.44]


def test_every_trial_can_be_seen_and_no_name_of_a_key_is_cut(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for number, value in enumerate(VALUES):
        params = {"train.optim.lr": 1e-5 * 2**number, "train.optim.weight_decay": 0.1 * number}
        study.add_trial(create_trial(params=params, distributions=RATES, value=value))
    drawn, missing = pictures.draw(study, tmp_path, metric="mIoU")
    assert ([path.name for path in drawn], missing) == (list(pictures.NAMES), {})
    with Image.open(drawn[2]) as picture:
        colours = {colour: count for count, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert max(colours, key=lambda colour: colours[colour]) == (255, 255, 255)
    palest = (166, 206, 228)  # Blues at 0.35: what the worst trial is drawn in
    assert any(max(abs(a - b) for a, b in zip(colour, palest, strict=True)) < 6 for colour in colours)


def trial(number: int, *values: float, whole: bool = True) -> FrozenTrial:
    """One that reported these values, and was stopped after them where it is not whole."""
    params = {"train.optim.lr": 1e-5 * 2**number, "train.optim.weight_decay": 0.1 * number}
    return create_trial(
        params=params, distributions=RATES, intermediate_values=dict(enumerate(values, 1)),
        state=TrialState.COMPLETE if whole else TrialState.PRUNED, value=values[-1] if whole else None,
    )  # fmt: skip


def test_trials_that_were_stopped_early_are_drawn_too_so_that_a_short_study_has_all_pictures(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trials([trial(0, 0.3, 0.6), trial(1, 0.2, whole=False), create_trial(state=TrialState.FAIL)])
    drawn, missing = pictures.draw(study, tmp_path / "two", metric="mIoU")
    assert [path.name for path in drawn] == [pictures.HISTORY, pictures.PARALLEL]
    assert "2 trial(s) of the search space were measured, and it needs 3" in missing[pictures.IMPORTANCES]
    assert pictures.importances(study) == {}
    study.add_trial(trial(3, 0.1, whole=False))
    assert pictures.draw(study, tmp_path / "three", metric="mIoU")[1] == {}
    assert sum(pictures.importances(study).values()) == pytest.approx(1.0, abs=0.01)


def test_trials_that_came_out_alike_say_nothing_of_importance_and_the_reason_is_told(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trials([trial(number, 0.5) for number in range(3)])
    _, missing = pictures.draw(study, tmp_path, metric="mIoU")
    assert "came out alike" in missing[pictures.IMPORTANCES]


def test_a_first_trial_outside_the_space_is_in_the_history_and_not_beside_the_others(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trials([create_trial(value=0.5), trial(1, 0.2), trial(2, 0.4)])
    drawn, missing = pictures.draw(study, tmp_path, metric="mIoU")
    assert [path.name for path in drawn] == [pictures.HISTORY, pictures.PARALLEL]
    assert list(missing) == [pictures.IMPORTANCES]
