"""study.json, and what get_job shows of it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mask2former_mcp.automl import result, retention
from mask2former_mcp.errors import NotFound
from mask2former_mcp.jobs import members
from mask2former_mcp.jobs.job import LIVE, Job, JobState
from mask2former_mcp.jobs.plan import AutomlDecision, Estimate, Plan
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.jobs.views import JobViews
from mask2former_mcp.reports.tables import leaderboard_table

LINE = {
    "trial": 0, "job_id": "train-0", "parameters": {"train.optim.lr": 0.002}, "metric": 0.5, "epoch": 3,
    "status": "finished", "duration_s": 12.0,
}  # fmt: skip


SPEC: dict[str, Any] = {
    "results_dir": "{results_dir}",
    "train": {"num_epochs": 4, "validation_interval": 1, "checkpoint_interval": 1, "optim": {"lr": 0.002}},
    "model": {"mask_former": {"hidden_dim": 64}},
}
CURVE = [0.2, 0.6, 0.9, 0.5]  # mIoU after epochs 0 to 3


def job(**changes: Any) -> Job:
    plan = Plan(
        action="train",
        automl=AutomlDecision(policy="auto", route="automl", source="default", reason="test"),
        spec_overrides={}, spec=changes.pop("spec", SPEC), command=("mask2former",), image=None, platform="local",
        runtime=changes.pop("runtime", "engine"), checkpoint=changes.pop("checkpoint", None),
        estimate=Estimate(gpus=0, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="table"),
        digest="d" * 64, study=changes.pop("study", None),
    )  # fmt: skip
    fields: dict[str, Any] = {"state": JobState.SUCCEEDED, "created_at": 0.0, "results_dir": "jobs/train-s/results"}
    return Job(id="train-s", action="train", plan=plan, **{**fields, **changes})


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Callable[..., tuple[Job, JobViews]]]:
    """A job in a store of its own; `epochs` of them trained, those but `without` with a checkpoint, then `ended`."""
    store = JobStore(tmp_path)

    def insert(
        epochs: int = 0, *, without: Sequence[int] = (), ended: JobState | None = None, message: str = "", **fields: Any
    ) -> tuple[Job, JobViews]:
        found, jobs = store.insert(job(state=JobState.QUEUED, **fields))[0], JobViews(store)
        folder = jobs.results_dir(found.id) / "train"
        folder.mkdir(parents=True)
        store.history.begin(found.id, 1, resumed_from=None, resume_epoch=None, status_offset=0)
        for epoch in range(epochs):
            store.series.write(found.id, 1, epoch, {"mIoU": CURVE[epoch]})
            if epoch not in without:
                (folder / f"model_epoch_{epoch:03d}_step_{epoch:05d}.pth").write_bytes(b"epoch %d" % epoch)
        if ended is not None:
            store.history.end(found.id, 1, ended, 0)
            store.transition(found.id, ended, expect=LIVE, text=message, message=message)
        return store.get(found.id), jobs

    yield insert
    store.close()


WON = {
    "trial": 0, "job_id": "train-0", "metric": 0.5, "epoch": 3, "spec": {"model": {}}, "sha256": "a" * 64,
    "parameters": {}, "reason": "best mIoU 0.5000",
}  # fmt: skip


def test_what_was_written_is_read_and_shown_without_the_long_parts(stored: Any) -> None:
    study, jobs = stored(study={"max_trials": 50}, ended=JobState.SUCCEEDED)
    results = jobs.results_dir(study.id)
    result.write(results, {"leaderboard": [LINE], "winner": WON, "trials": [LINE] * 50, "budget": {"max_trials": 50}})
    shown = result.shown(result.whole(study, jobs))
    assert shown["leaderboard"] == [LINE]
    assert "spec" not in shown["winner"]
    assert "trials" not in shown
    assert members.winner_id(job(), results) == "train-0"


def test_before_the_first_trial_there_is_an_empty_leaderboard_and_no_winner(stored: Any) -> None:
    study, jobs = stored(study={"max_trials": 8})
    shown = result.shown(result.whole(study, jobs))
    assert (shown["leaderboard"], shown["budget"]) == ([], {"max_trials": 8})
    with pytest.raises(NotFound, match="no winner"):
        members.winner_id(study, jobs.results_dir(study.id))


def test_who_won_leads_as_soon_as_the_study_is_resumed_and_is_named_as_such(stored: Any) -> None:
    study, jobs = stored(study={"max_trials": 8}, ended=JobState.SUCCEEDED)
    result.write(jobs.results_dir(study.id), {"leaderboard": [LINE], "winner": WON, "best_so_far": None})
    resumed = jobs.store.resume(study.id, expect=JobState.SUCCEEDED, attempt=1, changes={})
    shown = result.shown(result.whole(resumed, jobs))
    assert shown["winner"] is None
    assert shown["best_so_far"]["job_id"] == "train-0"
    assert shown["best_so_far"]["reason"].startswith("so far: best mIoU 0.5000")


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
