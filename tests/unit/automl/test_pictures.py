"""The pictures of a study: drawn on white, the worst trial too."""

from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from PIL import Image

from mask2former_mcp.automl import pictures

RATES = {"train.optim.lr": FloatDistribution(1e-5, 1e-3, log=True), "train.optim.weight_decay": FloatDistribution(0, 1)}
VALUES = [0.02, 0.5, 0.62, 0.44]


def test_every_trial_can_be_seen_and_no_name_of_a_key_is_cut(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for number, value in enumerate(VALUES):
        params = {"train.optim.lr": 1e-5 * 2**number, "train.optim.weight_decay": 0.1 * number}
        study.add_trial(create_trial(params=params, distributions=RATES, value=value))
    drawn = pictures.draw(study, tmp_path, metric="mIoU")
    assert [path.name for path in drawn] == list(pictures.NAMES)
    with Image.open(drawn[2]) as picture:
        colours = {colour: count for count, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert max(colours, key=lambda colour: colours[colour]) == (255, 255, 255)
    palest = (166, 206, 228)  # Blues at 0.35: what the worst trial is drawn in
    assert any(max(abs(a - b) for a, b in zip(colour, palest, strict=True)) < 6 for colour in colours)
