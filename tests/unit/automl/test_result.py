"""study.json, and what get_job shows of it."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mask2former_mcp.automl import result, retention
from mask2former_mcp.errors import NotFound
from mask2former_mcp.jobs import members
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import AutomlDecision, Estimate, Plan
from mask2former_mcp.reports.tables import leaderboard_table

LINE = {
    "trial": 0, "job_id": "train-0", "parameters": {"train.optim.lr": 0.002}, "metric": 0.5, "epoch": 3,
    "status": "finished", "duration_s": 12.0,
}  # fmt: skip


def job(**changes: Any) -> Job:
    plan = Plan(
        action="train",
        automl=AutomlDecision(policy="auto", route="automl", source="default", reason="test"),
        spec_overrides={}, spec={}, command=("mask2former",), image=None, platform="local", runtime="engine",
        estimate=Estimate(gpus=0, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="table"),
        digest="d" * 64, study=changes.pop("study", None),
    )  # fmt: skip
    return Job(id="train-s", action="train", state=JobState.SUCCEEDED, plan=plan, created_at=0.0, **changes)


def test_what_was_written_is_read_and_shown_without_the_long_parts(tmp_path: Path) -> None:
    won = {"trial": 0, "job_id": "train-0", "metric": 0.5, "spec": {"model": {}}, "sha256": "a" * 64}
    result.write(tmp_path, {"leaderboard": [LINE], "winner": won, "trials": [LINE] * 50, "budget": {"max_trials": 50}})
    shown = result.shown_of(job(study={"max_trials": 50}, eta_s=7.0), tmp_path)
    assert shown["leaderboard"] == [LINE]
    assert "spec" not in shown["winner"]
    assert "trials" not in shown
    assert shown["eta_s"] == 7.0
    assert members.winner_id(job(), tmp_path) == "train-0"


def test_before_the_first_trial_there_is_an_empty_leaderboard_and_no_winner(tmp_path: Path) -> None:
    shown = result.shown_of(job(study={"max_trials": 8}), tmp_path)
    assert (shown["leaderboard"], shown["budget"]) == ([], {"max_trials": 8})
    with pytest.raises(NotFound, match="no winner"):
        members.winner_id(job(), tmp_path)


def test_a_plain_run_is_a_study_of_one_trial_the_job_itself(tmp_path: Path) -> None:
    shown = result.shown_of(job(metrics={"mIoU": 0.7}, started_at=1.0, finished_at=4.0), tmp_path)
    assert shown["leaderboard"][0]["duration_s"] == 3.0
    assert shown["winner"]["job_id"] == "train-s"


def test_a_torn_or_foreign_file_is_no_result(tmp_path: Path) -> None:
    (tmp_path / result.FILE).write_text('{"leaderboard": [')
    assert result.read(tmp_path) is None
    assert members.find_winner(tmp_path) is None


def test_only_the_named_epochs_keep_their_checkpoints(tmp_path: Path) -> None:
    for epoch in range(3):
        (tmp_path / f"model_epoch_{epoch:03d}_step_{epoch:05d}.pth").write_bytes(b"w")
    (tmp_path / "mask2former_model_latest.pth").symlink_to("model_epoch_002_step_00002.pth")
    (tmp_path / "metrics.csv").write_text("kept")
    assert len(retention.keep_only(tmp_path, [1])) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "model_epoch_001_step_00001.pth"]
    assert retention.keep_only(tmp_path, [1]) == []


def test_the_leaderboard_is_a_table_for_people() -> None:
    console = Console(record=True, width=120)
    console.print(leaderboard_table([LINE, {**LINE, "trial": 1, "metric": None, "epoch": None}], title="Trials"))
    assert "lr=0.002" in console.export_text()
