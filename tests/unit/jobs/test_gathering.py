"""What attempts under TAO leave in their folders, and what becomes of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.gathering import gather, gathered


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    (tmp_path / "results").mkdir()
    return Folders(home=tmp_path, job=tmp_path, results=tmp_path / "results", own="attempt-3")


def job(*artifacts: str) -> Any:
    return SimpleNamespace(action="train", attempt=3, plan=SimpleNamespace(artifacts=artifacts))


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_later_attempts_artifacts_take_their_place_and_doing_it_again_changes_nothing(folders: Folders) -> None:
    write(folders.results / "train" / "model_epoch_000.pth", "old")
    write(folders.results / "attempt-2" / "train" / "model_epoch_000.pth", "new")
    write(folders.results / "attempt-2" / "train" / "model_epoch_001.pth")
    log = write(folders.results / "attempt-2" / "train" / "status.json")
    for _ in range(2):
        assert gathered(job("train/model_epoch_*.pth"), folders) == folders.results / "train"
        assert (folders.results / "train" / "model_epoch_000.pth").read_text() == "new"
        assert (folders.results / "train" / "model_epoch_001.pth").exists()
        assert log.exists()


def test_a_status_file_that_is_the_artifact_is_in_both_places(folders: Folders) -> None:
    status = write(folders.results / "attempt-3" / "evaluate" / "status.json", "lines")
    write(folders.results / "evaluate" / "status.json", "of the first attempt")
    for _ in range(2):
        gather(job("evaluate/status.json"), folders, 3)
        assert (folders.results / "evaluate" / "status.json").read_text() == status.read_text() == "lines"
        assert [path.name for path in (folders.results / "evaluate").iterdir()] == ["status.json"]


@pytest.mark.parametrize("link", ["attempt-3", "attempt-3/inference", "inference"])
def test_links_that_a_container_made_lead_nowhere(folders: Folders, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    kept = write(outside / "passwd", "root")
    write(outside / "inference" / "passwd", "root")
    if link == "inference":
        write(folders.results / "attempt-3" / "inference" / "a.jpg")
    (folders.results / link).parent.mkdir(exist_ok=True)
    (folders.results / link).symlink_to(outside)
    gather(job("inference/*"), folders, 3)
    assert kept.exists()
    assert sorted(path.name for path in outside.iterdir()) == ["inference", "passwd"]
    assert (outside / "inference" / "passwd").exists()
