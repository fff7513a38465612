"""Whole jobs through the public service, with real SQLite and real processes; the engine is a script."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former_mcp.errors import InvalidRequest, NotAvailable, NotFound, WrongState
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.service import Jobs

pytestmark = pytest.mark.timeout(60)


def test_a_training_walks_from_queued_to_succeeded_with_metrics_of_every_epoch(bench: Any, jobs: Jobs) -> None:
    job = jobs.submit(bench.plan(epochs=3))
    assert job.id.startswith("train-")
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.progress, ended.eta_s, ended.error_code) == (JobState.SUCCEEDED, 1.0, None, None)
    assert ended.metrics == {"mIoU": pytest.approx(0.3), "val_loss": pytest.approx(0.7)}
    assert "Best mIoU 0.3000 at epoch 2" in ended.message
    assert jobs.metrics(job.id)["mIoU"] == [[0, 0.1], [1, 0.2], [2, pytest.approx(0.3)]]
    walked = [event.to_state for event in jobs.events(job.id) if event.to_state]
    assert walked == [JobState.QUEUED, JobState.PREPARING, JobState.RUNNING, JobState.SUCCEEDED]
    assert [attempt.exit_code for attempt in jobs.attempts(job.id)] == [0]
    checkpoints = [found for found in jobs.artifacts(job.id) if found["kind"] == "checkpoint"]
    assert [(c["epoch"], c.get("best", False)) for c in checkpoints] == [(0, False), (1, False), (2, True)]
    assert jobs.logs(job.id).lines == ("hello from train",)
    parent = jobs.parent(job.id)
    assert (parent.state, parent.results_dir, parent.epoch_metrics[1]["mIoU"]) == (
        "succeeded",
        jobs.results_dir(job.id),
        0.2,
    )
    assert [(e.job_id, e.steps) for e in jobs.earlier("train")] == [(job.id, 29)]


@pytest.mark.parametrize(
    ("passed_over", "words"),
    [
        (2, "Segmented 18 images, 2 were passed over. inference/unreadable.json names them."),
        (0, "inference finished."),
    ],
)
def test_an_inference_says_how_many_images_it_passed_over(bench: Any, jobs: Jobs, passed_over: int, words: str) -> None:
    says = {"message": "Segmented 18 images, 2 were passed over.", "unreadable": passed_over}
    ended = bench.finish(jobs, jobs.submit(bench.plan("inference", fake={"says": says})))
    assert (ended.state, ended.message) == (JobState.SUCCEEDED, words)


def test_taos_status_lines_are_read_with_all_their_quirks(bench: Any, jobs: Jobs) -> None:
    job = jobs.submit(bench.plan(fake={"style": "tao", "nan": [1], "done_status": "RUNNING"}))
    ended = bench.finish(jobs, job)
    assert ended.state is JobState.SUCCEEDED
    assert jobs.metrics(job.id)["mIoU"] == [[0, 0.1], [2, pytest.approx(0.3)]]
    assert jobs.metrics(job.id)["train_loss"] == [[0, 1.9], [1, 1.8], [2, pytest.approx(1.7)]]


@pytest.mark.parametrize(
    ("fake", "code", "words"),
    [
        ({"no_done": True}, "not_finished", "does not say that it finished"),
        ({"no_checkpoint": True}, "artifact_missing", "train/model_epoch_*.pth"),
        ({"exit": 1, "stderr": "RuntimeError: CUDA out of memory. Tried"}, "out_of_memory", "batch_size"),
        ({"signal": 9}, "killed", "SIGKILL"),
    ],
)
def test_a_run_that_did_not_finish_is_failed_with_cause_and_advice(
    bench: Any, jobs: Jobs, fake: dict[str, Any], code: str, words: str
) -> None:
    ended = bench.finish(jobs, jobs.submit(bench.plan(epochs=1, fake=fake)))
    assert (ended.state, ended.error_code) == (JobState.FAILED, code)
    assert words in ended.message


def test_an_engine_that_cannot_be_started_fails_the_job_and_names_it(bench: Any, tmp_path: Path) -> None:
    broken = tmp_path / "engine"
    broken.write_text("#!/nowhere/python\n")
    broken.chmod(0o755)
    jobs = bench.jobs(engine_command=(str(broken),))
    ended = bench.finish(jobs, jobs.submit(bench.plan()))
    assert (ended.state, ended.error_code) == (JobState.FAILED, "not_available")
    assert str(broken) in ended.message


@pytest.mark.parametrize("setting", ["engine_command", "python"])
def test_without_an_engine_nothing_is_stored_and_the_error_says_how_to_install_it(
    bench: Any, tmp_path: Path, setting: str
) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho \'["torch", "cv2"]\'\n')
    bare.chmod(0o755)
    settings = {
        "engine_command": {"engine_command": ("/nowhere/engine",)},
        "python": {"engine_command": (), "python": str(bare)},
    }[setting]
    jobs = bench.jobs(**settings)
    with pytest.raises(NotAvailable, match="torch, cv2" if setting == "python" else "/nowhere/engine") as refused:
        jobs.submit(bench.plan())
    assert "[engine]" in refused.value.fix
    assert jobs.list() == ([], None)


def test_a_run_name_is_the_same_job_again_and_another_plan_is_refused(bench: Any, jobs: Jobs) -> None:
    first = jobs.submit(bench.plan(run_name="belt"))
    assert jobs.submit(bench.plan(run_name="belt")).id == first.id
    with pytest.raises(InvalidRequest, match=f"{first.id}, whose plan differs in its digest"):
        jobs.submit(bench.plan(run_name="belt", digest="e" * 64))
    other = {"digest": "e" * 64, "datasets": {"train": {"uri": "/x"}}, "spec_overrides": {"train.num_epochs": 9}}
    with pytest.raises(InvalidRequest, match=r"differs in datasets, train\.num_epochs$"):
        jobs.submit(bench.plan(run_name="belt", **other))
    assert bench.finish(jobs, first).state is JobState.SUCCEEDED
    assert jobs.submit(bench.plan(run_name="belt")).id == first.id
    assert len(bench.starts(jobs, first)) == 1


@pytest.mark.parametrize(
    "change",
    [{"runtime": "tao"}, {"platform": "slurm"}],
)
def test_what_cannot_run_here_is_refused_and_nothing_is_stored(bench: Any, change: dict[str, str]) -> None:
    jobs = bench.jobs(engine_command=())  # with one, it may stand for TAO's command as well
    with pytest.raises(NotAvailable):
        jobs.submit(bench.plan().model_copy(update=change))
    assert jobs.list() == ([], None)
    assert not (bench.settings.home / "jobs").exists()


def test_the_child_sees_its_devices_and_allowed_variables_only(bench: Any) -> None:
    jobs = bench.jobs({"AWS_SECRET_ACCESS_KEY": "planted", "GITHUB_TOKEN": "planted", "OMP_NUM_THREADS": "3"})
    job = jobs.submit(bench.plan("evaluate", fake={"kpi": {"mIoU": 0.5}}))
    assert bench.finish(jobs, job).metrics == {"mIoU": 0.5}
    seen = json.loads((bench.folder(jobs, job) / "environment.json").read_text())
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["OMP_NUM_THREADS"]) == ("", "3")
    assert "planted" not in seen.values()
    assert not [name for name in seen if name.startswith("M2F_") and name != "M2F_RUN"]
    assert "planted" not in "".join(p.read_text(errors="replace") for p in bench.job_dir(job).rglob("*") if p.is_file())


def test_the_key_stands_in_the_private_spec_and_nowhere_else(bench: Any) -> None:
    key = "correct-horse-battery"
    jobs = bench.jobs({"M2F_ENCRYPTION_KEY": key})
    fake = {"print_spec": True, "exit": 1, "no_done": True, "failure": "cannot decrypt with $KEY"}
    job = jobs.submit(bench.plan(epochs=1, key_from_environment=True, fake=fake))
    ended = bench.finish(jobs, job)
    spec = bench.job_dir(job) / "spec.yaml"
    assert yaml.safe_load(spec.read_text())["encryption_key"] == key
    assert stat.S_IMODE(spec.stat().st_mode) == 0o600
    assert ended.message.startswith("cannot decrypt with ***")
    assert "encryption_key: ***" in "\n".join(jobs.logs(job.id).lines)
    holders = [p.name for p in bench.settings.home.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]
    assert sorted(holders) == ["spec.yaml", "status.json"]  # status.json: this engine wrote it there itself


def test_a_missing_key_fails_the_job_before_anything_starts(bench: Any, jobs: Jobs) -> None:
    ended = bench.finish(jobs, jobs.submit(bench.plan(key_from_environment=True)))
    assert (ended.state, ended.error_code) == (JobState.FAILED, "invalid_request")
    assert "M2F_ENCRYPTION_KEY" in ended.message
    assert not bench.starts(jobs, ended)


def test_a_used_results_folder_is_refused_and_a_new_one_outlives_the_job(
    bench: Any, jobs: Jobs, tmp_path: Path
) -> None:
    used, new = tmp_path / "used", tmp_path / "new"
    used.mkdir()
    (used / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="new or empty"):
        jobs.submit(bench.plan(results_dir=str(used)))
    job = jobs.submit(bench.plan(epochs=1, results_dir=str(new)))
    assert bench.finish(jobs, job).state is JobState.SUCCEEDED
    assert (new / "train" / "status.json").exists()
    jobs.delete(job.id)
    assert (new / "train" / "status.json").exists()
    assert not bench.job_dir(job).exists()


def test_delete_refuses_live_and_depended_upon_jobs_and_never_follows_links(
    bench: Any, jobs: Jobs, tmp_path: Path
) -> None:
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold.txt").write_text("gold")
    parent = bench.finish(jobs, jobs.submit(bench.plan(epochs=1)))
    (jobs.results_dir(parent.id) / "link").symlink_to(treasure)
    broken = {"fake": {"exit": 1, "no_done": True}, "parent_job_id": parent.id}
    failed = [bench.finish(jobs, jobs.submit(bench.plan("evaluate", **broken))) for _ in range(2)]
    done = bench.finish(jobs, jobs.submit(bench.plan("evaluate", parent_job_id=parent.id)))
    live = bench.hang(jobs, parent_job_id=parent.id)
    with pytest.raises(WrongState, match="still need its files") as refused:
        jobs.delete(parent.id)
    assert all(job.id in refused.value.message for job in (*failed, live))
    assert done.id not in refused.value.message
    with pytest.raises(WrongState, match="running"):
        jobs.delete(live.id)
    jobs.cancel(live.id)
    for job in (*failed, bench.finish(jobs, live)):
        jobs.delete(job.id)
    jobs.delete(parent.id)
    assert jobs.get(done.id).parent_job_id == parent.id
    assert (treasure / "gold.txt").read_text() == "gold"
    assert not bench.job_dir(parent).exists()
    with pytest.raises(NotFound, match="was deleted"):
        jobs.get(parent.id)


def test_a_failure_while_preparing_names_the_file_and_starts_nothing(bench: Any, jobs: Jobs) -> None:
    staging = {"kind": "extract", "source": "/nowhere/images.tar.gz", "target": "{home}/cache/archives/0/images"}
    ended = bench.finish(jobs, jobs.submit(bench.plan(staging=(staging,))))
    assert (ended.state, ended.error_code) == (JobState.FAILED, "dataset_invalid")
    assert "/nowhere/images.tar.gz" in ended.message
    assert not bench.starts(jobs, ended)
