"""Supervisors that end one after the other, here because settings do not read: that is not the trainer's trouble."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from mask2former_mcp.jobs import reconcile
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.jobs.spawn import supervised

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def trouble(bench: Any, jobs: Jobs) -> Path:
    """A file that ends every supervisor at its start."""
    return Path(bench.settings.home) / "config.toml"


def left_alone(bench: Any, jobs: Jobs, trouble: Path) -> Job:
    """A training in its third epoch that MAX_SPAWNS supervisors have left."""
    job: Job = bench.hang(jobs)
    trouble.write_text("nonsense = true")
    bench.kill(bench.supervisor(jobs, job))
    jobs.store.update(job.id, job.attempt, spawns=reconcile.MAX_SPAWNS)
    return job


def due(bench: Any, job: Job) -> None:
    """As if RETRY_S had passed since the last try."""
    os.utime(bench.job_dir(job) / "supervisor.lock", (0, 0))


def test_a_healthy_trainer_outlives_them_and_is_followed_again_when_the_trouble_is_over(
    bench: Any, jobs: Jobs, trouble: Path
) -> None:
    job = left_alone(bench, jobs, trouble)
    (trainer,) = bench.starts(jobs, job)
    due(bench, job)
    assert jobs.reconcile() == [job.id]
    bench.until(lambda: not supervised(jobs.store, jobs.store.get(job.id)), "the end of the new supervisor")
    seen = jobs.store.get(job.id)
    assert (seen.state, bench.runs(trainer)) == (JobState.RUNNING, True)
    assert seen.phase.startswith("nobody follows it")
    assert jobs.reconcile() == []  # not at every look
    trouble.unlink()
    due(bench, job)
    assert jobs.reconcile() == [job.id]
    bench.until(lambda: supervised(jobs.store, jobs.store.get(job.id)), "a supervisor that stays")
    jobs.cancel(job.id)
    assert bench.finish(jobs, job).state is JobState.CANCELLED
    assert not bench.runs(trainer)
    assert JobState.LOST not in [event.to_state for event in jobs.events(job.id)]


def test_without_a_process_the_job_is_lost_with_the_last_words(bench: Any, jobs: Jobs, trouble: Path) -> None:
    job = left_alone(bench, jobs, trouble)
    bench.kill(*bench.starts(jobs, job))
    jobs.reconcile()
    ended = jobs.store.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.LOST, "lost")
    assert "supervisor ended 5 times" in ended.message


def test_a_job_that_was_to_end_is_ended_all_the_same(
    bench: Any, jobs: Jobs, trouble: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = Mock(side_effect=reconcile.platform_for)
    monkeypatch.setattr(reconcile, "platform_for", platform)
    job = left_alone(bench, jobs, trouble)
    jobs.store.transition(job.id, JobState.STOPPING, expect=(JobState.RUNNING,), text="cancel asked for")
    jobs.store.update(job.id, job.attempt, spawns=reconcile.MAX_SPAWNS)
    jobs.reconcile()
    assert jobs.store.get(job.id).state is JobState.LOST
    assert platform.call_args.args[3] == bench.environ  # the caller's, which may name another daemon
    assert not any(bench.runs(pid) for pid in bench.starts(jobs, job))


def test_a_job_whose_end_no_supervisor_survives_is_lost_with_its_last_words(bench: Any, jobs: Jobs) -> None:
    job = jobs.submit(bench.plan(epochs=1, artifacts=("",)))  # no glob: looking for it raises
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.attempt) == (JobState.LOST, 1)
    assert "supervisor ended 5 times" in ended.message
    assert "Unacceptable pattern" in ended.message
    assert len(bench.starts(jobs, job)) == 1


def test_a_job_that_cannot_be_looked_after_keeps_nobody_from_the_others(bench: Any) -> None:
    jobs = bench.jobs(cpu_slots=2)
    good, bad = bench.hang(jobs), bench.hang(jobs)
    (bench.job_dir(bad) / "run/1/process.json").write_text("[]")
    for job in (good, bad):
        bench.kill(bench.supervisor(jobs, job))
    jobs.store.update(bad.id, bad.attempt, spawns=reconcile.MAX_SPAWNS)
    assert jobs.reconcile() == [good.id]  # which comes after the newer one
    assert jobs.store.get(bad.id).phase.startswith("nobody follows it: list indices")


def test_a_waiting_job_outlives_any_number_of_supervisors(bench: Any, jobs: Jobs) -> None:
    """As when the machine is started anew again and again."""
    bench.hang(jobs)
    waiting = jobs.submit(bench.plan(epochs=1))
    for _ in range(reconcile.MAX_SPAWNS + 2):
        bench.until(lambda: _has_looked(jobs, waiting), "its supervisor to wait")
        bench.kill(bench.supervisor(jobs, waiting))
        jobs.reconcile()
    assert jobs.store.get(waiting.id).state is JobState.QUEUED


def _has_looked(jobs: Jobs, job: Job) -> bool:
    found = jobs.store.get(job.id)
    return found.phase.startswith("waiting") and found.spawns < 2 and supervised(jobs.store, found)


def test_a_folder_on_its_way_out_finds_the_trash_in_its_place(jobs: Jobs) -> None:
    trash = jobs.store.home / reconcile.TRASH
    (trash / "train-1-17" / "deep").mkdir(parents=True)
    jobs.reconcile()
    assert list(trash.iterdir()) == []
