"""How far a loop is, told in what it counts, however many come at once."""

import json
from pathlib import Path

import pytest

from mask2former_mcp.engine import progress
from mask2former_mcp.engine.progress import Progress
from mask2former_mcp.engine.status import StatusLog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_batches_of_images_count_as_images(clock: list[float], tmp_path: Path) -> None:
    told = Progress(StatusLog(tmp_path), 20, message="Inference in progress", unit="image")
    for count in (8, 8, 4):
        clock[0] += count * 0.5
        told.step("a.jpg", count=count)
    assert told.recent_seconds_per_step() == pytest.approx(0.5)
    assert told.seconds_per_step() == pytest.approx(0.5)
    lines = [json.loads(line) for line in (tmp_path / "status.json").read_text().splitlines()]
    assert [(line["progress"], line["eta_s"]) for line in lines] == [(0.4, 6.0), (0.8, 2.0), (1.0, 0.0)]


def test_the_present_pace_is_that_of_the_last_steps(clock: list[float], tmp_path: Path) -> None:
    told = Progress(StatusLog(tmp_path), 1000)
    assert told.recent_seconds_per_step() == 0
    for step in range(2 * progress.RECENT):
        clock[0] += 5.0 if step < progress.RECENT else 0.25
        told.step("")
    assert told.recent_seconds_per_step() == pytest.approx(0.25)
    told.outside(60.0)
    assert told.recent_seconds_per_step() == 0
