"""Cancel and resume: what the user does to a job."""

import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former_mcp.errors import InvalidRequest, WrongState
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.service import Jobs

pytestmark = pytest.mark.timeout(60)


def test_cancel_ends_the_whole_process_tree_and_keeps_checkpoints(bench: Any, jobs: Jobs) -> None:
    job = bench.hang(jobs, fake={"grandchild": True})
    grandchild = int((bench.folder(jobs, job) / "grandchild.txt").read_text())
    assert bench.runs(grandchild)
    assert jobs.cancel(job.id).state in (JobState.STOPPING, JobState.CANCELLED)
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.error_code) == (JobState.CANCELLED, None)
    assert ended.message == "Cancelled. resume_job goes on from model_epoch_001_step_00019.pth."
    assert not bench.runs(bench.starts(jobs, job)[0])
    assert not bench.runs(grandchild)
    assert len(list(bench.folder(jobs, job).glob("model_epoch_*.pth"))) == 2
    assert jobs.cancel(job.id).state is JobState.CANCELLED


def test_a_job_cancelled_without_a_checkpoint_says_that_it_would_start_again(bench: Any, jobs: Jobs) -> None:
    job = bench.hang(jobs, fake={"no_checkpoint": True})
    jobs.cancel(job.id)
    words = "Cancelled before its first checkpoint: resume_job starts from the beginning."
    assert bench.finish(jobs, job).message == words
    job = jobs.submit(bench.plan("evaluate", fake={"start_s": 600}))
    bench.reach(jobs, job, JobState.RUNNING)
    jobs.cancel(job.id)
    assert bench.finish(jobs, job).message == "Cancelled. resume_job runs it again from the beginning."


def test_a_process_that_ignores_the_request_is_killed_after_the_grace(bench: Any) -> None:
    jobs = bench.jobs(cancel_grace_s=0.3)
    job = bench.hang(jobs, fake={"ignore_term": True})
    jobs.cancel(job.id)
    assert bench.finish(jobs, job).state is JobState.CANCELLED
    assert not bench.runs(bench.starts(jobs, job)[0])


def test_a_job_cancelled_while_queued_never_starts(bench: Any, jobs: Jobs) -> None:
    first = bench.hang(jobs)
    second = jobs.submit(bench.plan(epochs=1))
    bench.until(lambda: first.id in jobs.get(second.id).phase, "the second job to say behind whom it waits")
    cancelled = jobs.cancel(second.id)
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.message == "Cancelled while it was queued. resume_job queues it again."
    jobs.cancel(first.id)
    bench.finish(jobs, first)
    bench.until(lambda: not bench.runs(bench.supervisor(jobs, second)), "its supervisor to end")
    assert jobs.get(second.id).state is JobState.CANCELLED
    assert not bench.starts(jobs, second)


def test_jobs_wait_for_the_cpu_slot_in_the_order_they_came(bench: Any, jobs: Jobs) -> None:
    submitted = [jobs.submit(bench.plan(epochs=1, fake={"epoch_s": 0.2})) for _ in range(3)]
    ended = [bench.finish(jobs, job) for job in submitted]
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    spans = [(a.started_at, a.finished_at) for job in ended for a in jobs.attempts(job.id)]
    assert spans == sorted(spans)
    assert all(finish <= start for (_, finish), (start, _) in pairwise(spans))


def test_two_slots_run_two_jobs_at_once(bench: Any) -> None:
    jobs = bench.jobs(cpu_slots=2)
    first, second = bench.hang(jobs), bench.hang(jobs)
    assert {jobs.get(first.id).state, jobs.get(second.id).state} == {JobState.RUNNING}


def test_resume_continues_a_cancelled_training_from_its_last_checkpoint(bench: Any, jobs: Jobs) -> None:
    job = bench.hang(jobs, epochs=4)
    jobs.cancel(job.id)
    bench.finish(jobs, job)
    torn = bench.folder(jobs, job) / "model_epoch_002_step_00029.pth"
    torn.write_bytes(b"PK half a checkpoint")
    resumed = jobs.resume(job.id)
    assert (resumed.id, resumed.attempt, resumed.state) == (job.id, 2, JobState.QUEUED)
    ended = bench.finish(jobs, resumed)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    last = jobs.attempts(job.id)[-1]
    assert (last.resumed_from, last.resume_epoch) == ("model_epoch_001_step_00019.pth", 1)
    assert [point[0] for point in jobs.metrics(job.id)["mIoU"]] == [0, 1, 2, 3]
    assert torn.with_name(f"{torn.name}.broken").exists()


def test_a_finished_training_is_resumed_with_more_epochs_only(bench: Any, jobs: Jobs) -> None:
    job = bench.finish(jobs, jobs.submit(bench.plan(epochs=2)))
    for wrong in (None, 1, 2):
        with pytest.raises(InvalidRequest, match="2"):
            jobs.resume(job.id, num_epochs=wrong)
    ended = bench.finish(jobs, jobs.resume(job.id, num_epochs=4))
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert len(jobs.metrics(job.id)["mIoU"]) == 4
    assert jobs.parent(job.id).spec["train"]["num_epochs"] == 4
    assert jobs.spec(job.id)["train"]["num_epochs"] == 4


def test_results_of_other_actions_are_never_run_over(bench: Any, jobs: Jobs) -> None:
    job = bench.finish(jobs, jobs.submit(bench.plan("export", fake={"writes": ["model.onnx"]})))
    assert job.state is JobState.SUCCEEDED
    with pytest.raises(InvalidRequest, match="no epochs"):
        jobs.resume(job.id, num_epochs=3)
    with pytest.raises(WrongState, match="nothing to continue") as refused:
        jobs.resume(job.id)
    assert "Call export again" in refused.value.fix
    assert len(bench.starts(jobs, job)) == 1


def test_other_actions_that_failed_run_again_and_must_write_their_files_anew(bench: Any, jobs: Jobs) -> None:
    fake = {"writes": ["model.onnx"], "no_done": True, "exit": 1}
    job = bench.finish(jobs, jobs.submit(bench.plan("export", fake=fake)))
    assert job.state is JobState.FAILED
    with jobs.store.database.write() as connection:  # the engine changes meanwhile
        plan = bench.plan("export", fake={}).model_dump_json()
        connection.execute("UPDATE jobs SET plan = ? WHERE id = ?", (plan, job.id))
    os.utime(bench.folder(jobs, job) / "model.onnx", (1000, 1000))
    again = bench.finish(jobs, jobs.resume(job.id))
    assert again.state is JobState.FAILED
    assert "export/*.onnx" in again.message
    assert len(bench.starts(jobs, job)) == 2


def test_a_live_job_is_not_resumed(bench: Any, jobs: Jobs) -> None:
    job = bench.hang(jobs)
    with pytest.raises(WrongState, match="running"):
        jobs.resume(job.id)


def test_a_failed_attempt_does_not_taint_the_next_one(bench: Any, jobs: Jobs) -> None:
    """An attempt's verdict comes from its own lines of the same status.json and the same log."""
    oom = {"exit": 1, "stderr": "RuntimeError: CUDA out of memory", "no_done": True}
    job = jobs.submit(bench.plan(epochs=2, fake=oom))
    assert bench.finish(jobs, job).error_code == "out_of_memory"
    for fake, code in (({"exit": 3, "no_done": True}, "program_error"), ({}, None)):  # the engine changes meanwhile
        with jobs.store.database.write() as connection:
            plan = bench.plan(epochs=2, fake=fake).model_dump_json()
            connection.execute("UPDATE jobs SET plan = ? WHERE id = ?", (plan, job.id))
        ended = bench.finish(jobs, jobs.resume(job.id, num_epochs=3))
        assert ended.error_code == code
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 3)
    assert "--- attempt 3 ---" in "\n".join(jobs.logs(job.id).lines)


def test_waiting_is_bounded_and_answers_the_job_as_it_is(bench: Any, jobs: Jobs) -> None:
    job = bench.hang(jobs)
    began = time.monotonic()
    assert jobs.wait(job.id, 0.3).state is JobState.RUNNING
    assert time.monotonic() - began < 10


def test_gpus_are_leased_by_uuid_and_the_spec_is_rewritten_to_match(bench: Any, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nfor n in a b c; do echo "0, GPU-$n, Some GPU, 81559"; done\n')
    tool.chmod(0o755)
    jobs = bench.jobs({"PATH": f"{tmp_path}:{bench.environ['PATH']}"}, gpus="auto")

    def plan(*gpu_ids: int) -> Any:
        base = bench.plan(fake={"hang_at": 0})
        devices = {
            "gpu_ids": list(gpu_ids),
            "num_gpus": len(gpu_ids),
            "device": f"cuda:{gpu_ids[0]}",
        }
        train = {**base.spec["train"], **devices}
        return base.model_copy(update={"spec": {**base.spec, "train": train}})

    pair, single, waiting = (jobs.submit(plan(*ids)) for ids in ((4, 7), (0,), (0,)))
    for job in (pair, single):
        bench.until((bench.folder(jobs, job) / "hanging").exists, f"{job.id} to run")
    seen = [(bench.folder(jobs, job) / "starts.txt").read_text().split()[1] for job in (pair, single)]
    assert seen == ["GPU-a,GPU-b", "GPU-c"]
    spec = yaml.safe_load((bench.job_dir(pair) / "spec.yaml").read_text())
    assert (spec["train"]["gpu_ids"], spec["train"]["num_gpus"], spec["train"]["device"]) == ([0, 1], 2, "cuda:0")
    bench.until(lambda: "waiting for 1 GPU behind" in jobs.get(waiting.id).phase, "the third job to wait")
    ended = bench.finish(jobs, jobs.submit(plan(0, 1, 2, 3)))
    assert (ended.state, ended.error_code) == (JobState.FAILED, "not_available")
