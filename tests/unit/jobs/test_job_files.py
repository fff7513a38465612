"""Logs, artifacts, checkpoints, metric series and folders: what is read from files and rows."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs import logs
from mask2former_mcp.jobs.artifacts import find_artifacts, missing
from mask2former_mcp.jobs.checkpoints import intact, newest_intact, saved, set_aside_broken
from mask2former_mcp.jobs.folders import Folders, new_id, stored_results_dir
from mask2former_mcp.jobs.following import success_message
from mask2former_mcp.jobs.job import Job
from mask2former_mcp.jobs.keys import hidden, job_keys
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.series import best_epoch, headline, thin
from mask2former_mcp.jobs.status import Run
from mask2former_mcp.jobs.store import JobStore


def checkpoint(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"w" * 2000)
    return path


def test_a_torn_or_empty_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "model_epoch_001_step_00020.pth")
    torn = checkpoint(tmp_path / "model_epoch_002_step_00030.pth")
    torn.write_bytes(torn.read_bytes()[:-40])
    (tmp_path / "model_epoch_003_step_00040.pth").touch()
    (tmp_path / "mask2former_model_latest.pth").symlink_to(torn)
    checkpoint(tmp_path / "epoch_9" / "best.pth")
    assert [c.epoch for c in saved(tmp_path)] == [1, 2, 3]
    assert intact(good)
    found = newest_intact(tmp_path)
    assert found is not None
    assert (found.path, found.epoch, found.step) == (good, 1, 20)
    assert set_aside_broken(tmp_path) == ["model_epoch_002_step_00030.pth", "model_epoch_003_step_00040.pth"]
    assert [c.epoch for c in saved(tmp_path)] == [1]
    assert newest_intact(tmp_path / "nowhere") is None


def test_a_log_is_paged_filtered_and_cleaned(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    assert logs.read_page(path, tail=5).lines == ()
    path.write_bytes(b"one\n\x1b[31mtwo: Error\x1b[0m\x07\nthree\r10%\r20%\nfour: WARNING\nfive")
    assert logs.read_page(path, tail=2).lines == ("four: WARNING", "five")
    assert logs.read_page(path, tail=9, grep="error|warning").lines == ("two: Error", "four: WARNING")
    first = logs.read_page(path, tail=2, cursor="0")
    assert first.lines == ("one", "two: Error")
    second = logs.read_page(path, tail=9, cursor=first.next_cursor)
    assert second.lines == ("three", "10%", "20%", "four: WARNING")  # `five` has no newline yet
    with path.open("ab") as stream:
        stream.write(b" more\n" + b"x" * 5000 + b"\n")
    third = logs.read_page(path, tail=9, cursor=second.next_cursor)
    assert third.lines[0] == "five more"
    assert third.lines[1].endswith("(5000 characters)")
    with pytest.raises(InvalidRequest, match="cursor"):
        logs.read_page(path, tail=1, cursor="-1")


def test_a_log_read_by_cursor_within_a_budget_leaves_nothing_out(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    written = [f"line {number} {'x' * (1 + number % 90)}" for number in range(300)]
    path.write_text("\n".join([*written, "y" * 900]) + "\n")
    read: list[str] = []
    cursor = "0"
    while (page := logs.read_page(path, tail=1000, cursor=cursor, budget=500)).lines:
        assert sum(map(len, page.lines)) <= 500 or len(page.lines) == 1
        read += page.lines
        cursor = page.next_cursor
    assert read == [*written, "y" * 900]
    assert cursor == str(path.stat().st_size)
    with pytest.raises(InvalidRequest, match="cursor"):
        logs.read_page(path, tail=1, cursor="9" * 5000)


def test_artifacts_name_kind_epoch_and_the_best_and_stay_inside(tmp_path: Path) -> None:
    results = tmp_path / "results"
    checkpoint(results / "train" / "model_epoch_000_step_00010.pth")
    checkpoint(results / "train" / "model_epoch_001_step_00020.pth")
    (results / "train" / "status.json").write_text("{}")
    (results / "train" / "events.out.tfevents.1").write_text("x")
    (tmp_path / "secret.txt").write_text("secret")
    (results / "leak.txt").symlink_to(tmp_path / "secret.txt")
    (results / "train" / "latest.pth").symlink_to(results / "train" / "model_epoch_001_step_00020.pth")
    found = {artifact.path: artifact for artifact in find_artifacts(results, best_epoch=0)}
    assert list(found)[:2] == ["train/model_epoch_000_step_00010.pth", "train/model_epoch_001_step_00020.pth"]
    assert [found[path].best for path in list(found)[:2]] == [True, False]
    kinds = {path: artifact.kind for path, artifact in found.items()}
    assert kinds["train/status.json"] == "status"
    assert kinds["train/latest.pth"] == "link"
    assert kinds["train/events.out.tfevents.1"] == "tensorboard"
    assert "leak.txt" not in found
    assert find_artifacts(tmp_path / "nowhere", best_epoch=None) == []


def test_an_expected_artifact_must_be_there_with_content_and_new_if_asked(tmp_path: Path) -> None:
    model = tmp_path / "export" / "model.onnx"
    assert missing(tmp_path, ["export/*.onnx"]) == ["export/*.onnx"]
    model.parent.mkdir()
    model.touch()
    assert missing(tmp_path, ["export/*.onnx"]) == ["export/*.onnx"]
    model.write_bytes(b"x")
    assert missing(tmp_path, ["export/*.onnx", str(model)]) == []
    os.utime(model, (1000, 1000))
    assert missing(tmp_path, ["export/*.onnx"], newer_than=2000) == ["export/*.onnx"]


def test_the_best_epoch_decides_the_headline_and_thinning_keeps_it() -> None:
    epochs = {e: {"mIoU": 0.5 if e == 33 else 0.1, "val_loss": float(e)} for e in range(100)}
    assert best_epoch(epochs, "mIoU") == 33
    assert best_epoch(epochs, "val_loss") == 0
    assert headline(epochs, "mIoU") == {"mIoU": 0.5, "val_loss": 33.0}
    assert headline({4: {"train_loss": 2.0}}, "mIoU") == {"train_loss": 2.0}
    assert headline({}, "mIoU") == {}
    shown = [point["epoch"] for point in thin(epochs, 10, 33)]
    assert len(shown) <= 10
    assert {0, 33, 99} <= set(shown)
    assert shown == sorted(shown)


def test_a_training_that_taught_nothing_says_so_at_its_end(store: JobStore, add: Callable[..., Job]) -> None:
    courses = {
        "train-1": [(60.0, 0.2), (70.0, 0.3), (40.0, 0.5)],
        "train-2": [(60.0, 0.2), (700.0, 0.0), (8e6, 0.0)],
        "train-3": [(60.0, 0.0), (58.0, 0.0)],
    }
    said = {}
    for job_id, epochs in courses.items():
        job = add(job_id)
        store.history.begin(job_id, 1, resumed_from=None, resume_epoch=None, status_offset=0)
        for epoch, (loss, value) in enumerate(epochs):
            store.series.write(job_id, 1, epoch, {"train_loss": loss, "mIoU": value})
        said[job_id] = success_message(store, job, Run())
    assert said["train-1"] == "Best mIoU 0.5000 at epoch 2 (counted from 0)."
    assert "diverged: train_loss went from 60 to 8e+06" in said["train-2"]
    assert "finds nothing" not in said["train-2"]
    assert "finds nothing yet: the best mIoU is 0.0000" in said["train-3"]


def test_metrics_follow_the_history_of_the_weights(store: JobStore, add: Callable[..., Job]) -> None:
    """Attempt 2 goes on from epoch 1, attempt 3 starts afresh."""
    add("train-1")
    begin, write = store.history.begin, store.series.write
    begin("train-1", 1, resumed_from=None, resume_epoch=None, status_offset=0)
    for epoch in range(4):
        write("train-1", 1, epoch, {"mIoU": 0.1 + epoch, "val_loss": float("nan")})
    assert sorted(store.series.epochs("train-1")) == [0, 1, 2, 3]
    begin("train-1", 2, resumed_from="model_epoch_001_step_00020.pth", resume_epoch=1, status_offset=9)
    write("train-1", 2, 2, {"mIoU": 9.0})
    assert store.series.epochs("train-1") == {0: {"mIoU": 0.1}, 1: {"mIoU": 1.1}, 2: {"mIoU": 9.0}}
    begin("train-1", 3, resumed_from=None, resume_epoch=None, status_offset=18)
    assert store.series.epochs("train-1") == {}


def test_placeholders_are_filled_however_deep_and_results_paths_are_kept_relative(
    tmp_path: Path, add: Callable[..., Job]
) -> None:
    folders = Folders.of(tmp_path, add("train-1"))
    filled = folders.fill({"a": ["{results_dir}/x", {"b": "{home}/cache"}], "c": 3, "d": "{job_dir}", "e": "{other}"})
    job = tmp_path / "jobs" / "train-1"
    assert filled == {"a": [f"{job}/results/x", {"b": f"{tmp_path}/cache"}], "c": 3, "d": str(job), "e": "{other}"}
    assert stored_results_dir(tmp_path, "train-1", str(tmp_path / "mine")) == "mine"
    assert stored_results_dir(tmp_path, "train-1", "/data/mine") == "/data/mine"


def test_ids_are_readable_and_do_not_repeat() -> None:
    ids = {new_id("gen_trt_engine") for _ in range(200)}
    assert len(ids) == 200
    assert all(one.startswith("gen-trt-engine-") and len(one) == 23 for one in ids)


def test_the_key_that_an_earlier_attempt_was_given_is_known_without_the_environment(
    add: Callable[..., Job], plan: Plan, tmp_path: Path
) -> None:
    """Else whoever takes the job over would copy it into the log unmasked."""
    job = add("train-1")
    folders = Folders.of(tmp_path / "home", job)
    folders.job.mkdir(parents=True)
    folders.spec.write_text("encryption_key: hunter2\n")
    keyed = replace(job, plan=plan.model_copy(update={"key_from_environment": True}))
    assert job_keys(keyed, folders, {}) == ("hunter2",)
    assert job_keys(job, folders, {}) == ()  # this one's Plan has no key
    folders.spec.write_text("- not a spec\n")
    assert job_keys(keyed, folders, {}) == ()


def test_a_server_with_another_key_masks_the_jobs_own_one_as_well(
    add: Callable[..., Job], plan: Plan, tmp_path: Path
) -> None:
    job = replace(add("train-1"), plan=plan.model_copy(update={"key_from_environment": True}))
    folders = Folders.of(tmp_path / "home", job)
    folders.job.mkdir(parents=True)
    folders.spec.write_text("encryption_key: hunter2\n")
    keys = job_keys(job, folders, {"M2F_ENCRYPTION_KEY": "hunter"})
    assert hidden("hunter2 or hunter", keys) == "*** or ***"
    assert job_keys(job, folders, {"M2F_ENCRYPTION_KEY": "hunter2"}) == ("hunter2",)
