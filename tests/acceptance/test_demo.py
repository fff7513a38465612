"""The demo: small, with a search, from beginning to end; and what it says when it cannot go on."""

import re
from typing import Any

import anyio
import pytest
from rich.console import Console

from mask2former_mcp.demo.walk import DemoFailed, Walk, walk


def test_a_demo_on_a_machine_without_the_engine_stops_at_doctor_and_says_so(environ, tmp_path, processes):
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho \'{"missing": ["torch"]}\'\n')
    bare.chmod(0o755)
    console = Console(record=True, width=120)
    small = Walk(folder=tmp_path / "belt", train_images=4, val_images=2, test_images=1, size=64)
    with pytest.raises(DemoFailed, match="doctor"):
        anyio.run(walk, small, console, {**environ, "M2F_PYTHON": str(bare)})
    assert "pip install" in console.export_text()


@pytest.mark.slow
def test_a_demo_with_a_search_prints_its_trials_and_a_winner_no_worse_than_the_plain_run(
    environ: dict[str, str], tmp_path: Any, tiny_training: dict[str, Any], processes: Any
) -> None:
    training = {**{name: value for name, value in tiny_training.items() if name != "train_dataset"}, "num_epochs": 1}
    console = Console(record=True, width=160)
    small = Walk(
        folder=tmp_path / "belt", train_images=12, val_images=4, test_images=2, size=64, trials=2, training=training
    )
    found = anyio.run(walk, small, console, environ)
    shown = console.export_text()
    assert f"Trials of {found['jobs']['train']}" in shown
    rows = re.findall(r"│ (\d+) +│ ([\d.]+) +│ +\d+ +│ (?:finished|pruned)", shown)
    values = {int(trial): float(metric) for trial, metric in rows}
    assert sorted(values) == [0, 1]
    (best,) = re.findall(r"^  best mIoU ([\d.]+), at epoch", shown, re.MULTILINE)
    assert float(best) >= values[0]
    assert found["metrics"]["best checkpoint"]["mIoU"] == pytest.approx(float(best), abs=2e-3)
    assert "Dataset checked: 12 images with" in shown
    assert "train 100%: succeeded\n" in shown
    for name, path in found["files"].items():
        assert path.exists()
        assert f"{name}: {path}\n" in shown
    assert (found["files"]["Model"].suffix, found["files"]["ONNX"].name) == (".pth", "model.onnx")
    assert len(list(found["files"]["Overlays of test images"].glob("*.jpg"))) == 2
