"""What TAO's containers do, and what the supervisor says of it: the stand-in's script as a local process.

tests/docker/ runs the same script in a container.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import WrongState
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.service import Jobs

pytestmark = pytest.mark.timeout(60)
STANDIN = Path(__file__).parents[2] / "docker" / "standin" / "tao.py"


@pytest.fixture
def jobs(bench: Any) -> Jobs:
    made: Jobs = bench.jobs(engine_command=(sys.executable, str(STANDIN)))
    return made


def plan(bench: Any, quirks: str = "", *, epochs: int = 3, **changes: Any) -> Plan:
    train = {
        "num_epochs": epochs, "validation_interval": 1, "checkpoint_interval": 1, "resume_training_checkpoint_path": "",
        "optim": {"lr": 2e-4}, **changes.pop("train", {}),
    }  # fmt: skip
    spec = {"results_dir": "{results_dir}", "model_name": quirks, "train": train, **changes.pop("spec", {})}
    made: Plan = bench.plan(changes.pop("action", "train"), spec=spec, runtime="tao", **changes)
    return made


def run(bench: Any, jobs: Jobs, quirks: str = "", **changes: Any) -> Job:
    ended: Job = bench.finish(jobs, jobs.submit(plan(bench, quirks, **changes)))
    return ended


def status_lines(jobs: Jobs, job: Job, folder: str = "train") -> list[dict[str, Any]]:
    text = (jobs.results_dir(job.id) / folder / "status.json").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_that_never_writes_success_has_succeeded_and_its_sticky_kpis_are_measured_once(
    bench: Any, jobs: Jobs
) -> None:
    job = run(bench, jobs, "nan=1")
    assert job.state is JobState.SUCCEEDED, job.message
    lines = status_lines(jobs, job)
    assert {line["status"] for line in lines} == {"STARTED", "RUNNING"}
    assert len([line for line in lines if "kpi" in line]) > 9
    found = jobs.metrics(job.id)
    assert [epoch for epoch, _ in found["mIoU"]] == [0, 2]  # the NaN of epoch 1 is no measurement
    assert [epoch for epoch, _ in found["train_loss"]] == [0, 1, 2]
    assert job.metrics["mIoU"] == pytest.approx(0.8 * (1 - 2.718281828**-3), abs=1e-6)


@pytest.mark.parametrize(
    ("quirks", "code", "words"),
    [
        ("oom=1", "out_of_memory", "batch_size"),
        ("assert=1", "device_assert", "check_dataset"),
        ("bug=1", "program_error", "too many values"),
        ("disk=1", "disk_full", "delete_job"),
        ("missing=1", "missing_file", "check_dataset"),
        ("interrupt=1", "interrupted", "resume_job"),
        ("silent", "not_finished", "does not say that it finished"),
        ("kill=1", "killed", "SIGKILL"),
    ],
)
def test_the_programs_failures_are_named_by_their_root_and_never_retried(
    bench: Any, jobs: Jobs, quirks: str, code: str, words: str
) -> None:
    job = run(bench, jobs, quirks)
    assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, code, 1), job.message
    assert words in job.message
    failures = [line for line in status_lines(jobs, job) if line["status"] == "FAILURE"]
    assert len(failures) == (1 if code == "interrupted" else 0)
    assert jobs.attempts(job.id)[0].exit_code == (0 if code in ("interrupted", "not_finished") else
                                                  -9 if code == "killed" else 1)  # fmt: skip


def test_an_assertion_about_intervals_is_a_bad_spec(bench: Any, jobs: Jobs) -> None:
    assert run(bench, jobs, train={"checkpoint_interval": 9}).error_code == "invalid_spec"


def test_an_interrupted_run_that_ends_with_zero_is_cancelled_when_that_was_asked(bench: Any, jobs: Jobs) -> None:
    job = jobs.submit(plan(bench, "hang=1"))
    bench.until((bench.folder(jobs, job) / "hanging").exists, "the stand-in to hang")
    jobs.cancel(job.id)
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.error_code) == (JobState.CANCELLED, None)
    assert jobs.attempts(job.id)[0].exit_code == 0


def test_a_container_that_vanished_goes_on_in_a_fresh_folder_too(bench: Any, jobs: Jobs) -> None:
    job = run(bench, jobs, "die-once=2", epochs=4)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2), job.message
    assert [attempt.state for attempt in jobs.attempts(job.id)] == [JobState.LOST, JobState.SUCCEEDED]
    assert jobs.attempts(job.id)[1].resumed_from == "model_epoch_001_step_00020.pth"
    assert "Resuming" in status_lines(jobs, job, "attempt-2/train")[1]["message"]
    assert [epoch for epoch, _ in jobs.metrics(job.id)["mIoU"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("quirk", ["xid-once=2", "nccl-once=2"])
def test_the_machines_failure_is_retried_in_a_fresh_folder_from_the_last_checkpoint(
    bench: Any, jobs: Jobs, quirk: str
) -> None:
    job = run(bench, jobs, quirk, epochs=4)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2), job.message
    first, second = jobs.attempts(job.id)
    assert (first.state, first.exit_code) == (JobState.FAILED, 1)
    # What the exception saved in the middle of the epoch is the newest whole file.
    assert second.resumed_from == "model_epoch_002_step_00023.pth"
    results = jobs.results_dir(job.id)
    assert [line["status"] for line in status_lines(jobs, job)].count("STARTED") == 1
    fresh = status_lines(jobs, job, "attempt-2/train")
    assert [line["status"] for line in fresh].count("STARTED") == 1
    assert f"{results}/train/model_epoch_002_step_00023.pth" in fresh[1]["message"]
    # One series and one shelf of checkpoints, as if nothing had happened.
    assert [epoch for epoch, _ in jobs.metrics(job.id)["mIoU"]] == [0, 1, 2, 3]
    files = {item["path"] for item in jobs.artifacts(job.id) if item["kind"] == "checkpoint"}
    assert {"train/model_epoch_000_step_00010.pth", "train/model_epoch_003_step_00040.pth"} <= files
    assert not any(path.startswith("attempt-") for path in files)
    assert any("GPU" in event.text or "NCCL" in event.text for event in jobs.events(job.id))


def test_retries_are_bounded_and_the_last_failure_says_so(bench: Any) -> None:
    jobs = bench.jobs(engine_command=(sys.executable, str(STANDIN)), max_restarts=2)
    job = run(bench, jobs, "xid")
    assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, "gpu_fault", 3)
    assert "last of 2 automatic restarts" in job.message
    assert [attempt.state for attempt in jobs.attempts(job.id)] == [JobState.FAILED] * 3


def test_a_resumed_job_gets_a_fresh_folder_although_the_image_would_resume_by_itself(bench: Any, jobs: Jobs) -> None:
    job = run(bench, jobs, "missing=2", epochs=4)
    torn = jobs.results_dir(job.id) / "train" / "model_epoch_002_step_00023.pth"
    torn.write_bytes(torn.read_bytes()[:40])
    jobs.resume(job.id)
    ended = bench.finish(jobs, job)  # the quirk strikes again in the same epoch
    assert (ended.attempt, ended.error_code) == (2, "missing_file")
    assert jobs.attempts(job.id)[1].resumed_from == "model_epoch_001_step_00020.pth"
    assert (torn.parent / f"{torn.name}.broken").exists()
    assert "Resuming" in status_lines(jobs, job, "attempt-2/train")[1]["message"]


def test_a_used_folder_is_resumed_unasked_by_the_stand_in_as_taos_image_does(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    train = {"num_epochs": 2, "checkpoint_interval": 1, "optim": {"lr": 2e-4}}
    for epochs in (2, 3):
        spec.write_text(json.dumps({"results_dir": str(tmp_path), "train": {**train, "num_epochs": epochs}}))
        subprocess.run([sys.executable, str(STANDIN), "train", "-e", str(spec)], check=True, timeout=20)
    messages = (tmp_path / "train" / "status.json").read_text()
    assert messages.count("STARTED") == 2
    assert "Resuming training from checkpoint" in messages


def test_an_export_that_failed_after_writing_its_file_is_retried_where_no_file_is(bench: Any, jobs: Jobs) -> None:
    checkpoint = bench.settings.home / "weights.pth"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes(b"weights")
    section = {"checkpoint": str(checkpoint), "onnx_file": "{results_dir}/export/model.onnx"}
    job = run(bench, jobs, "xid", action="export", spec={"export": section}, artifacts=("export/model.onnx",))
    # The stand-in fails once per folder, and every attempt has a new one.
    assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, "gpu_fault", 4)
    assert not any("exists" in event.text for event in jobs.events(job.id))
    job = run(bench, jobs, "", action="export", spec={"export": section}, artifacts=("export/model.onnx",))
    assert job.state is JobState.SUCCEEDED
    assert (jobs.results_dir(job.id) / "export" / "model.onnx").stat().st_size > 0
    with pytest.raises(WrongState, match="nothing to continue"):
        jobs.resume(job.id)


def test_a_rewritten_spec_is_not_the_jobs_record(bench: Any, jobs: Jobs) -> None:
    """Locally the process gets the job's own file; what is shown, and resumed, comes from the store."""
    job = run(bench, jobs, "rewrite=7", train={"num_gpus": 1})
    assert job.state is JobState.SUCCEEDED
    assert "num_gpus: 7" in (bench.job_dir(job) / "spec.yaml").read_text()
    assert jobs.spec(job.id)["train"]["num_gpus"] == 1


def test_the_deploy_images_metrics_are_read_from_its_log(bench: Any, tmp_path: Path) -> None:
    launcher = tmp_path / "deploy"
    launcher.write_text(f'#!/bin/sh\nSTANDIN_IMAGE=deploy exec {sys.executable} {STANDIN} "$@"\n')
    launcher.chmod(0o755)
    jobs = bench.jobs(engine_command=(str(launcher),))
    (tmp_path / "model.engine").write_bytes(b"engine")
    (tmp_path / "label_map.json").write_text("[]")
    spec = {
        "evaluate": {"trt_engine": str(tmp_path / "model.engine")},
        "dataset": {"label_map": str(tmp_path / "label_map.json")},
    }
    job = run(bench, jobs, action="evaluate", spec=spec, artifacts=("trt_evaluate/*",))
    assert job.state is JobState.SUCCEEDED, job.message
    assert job.metrics == {"mIoU": 0.43, "ACC_all": 0.91}
    assert (jobs.results_dir(job.id) / "trt_evaluate" / "status.json").exists()
