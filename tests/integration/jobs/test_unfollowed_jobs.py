"""Supervisors that end one after the other, here because settings do not read: that is not the trainer's trouble."""

import os
from pathlib import Path
from typing import Any

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


def test_a_job_that_was_to_end_is_ended_all_the_same(bench: Any, jobs: Jobs, trouble: Path) -> None:
    job = left_alone(bench, jobs, trouble)
    jobs.store.transition(job.id, JobState.STOPPING, expect=(JobState.RUNNING,), text="cancel asked for")
    jobs.store.update(job.id, job.attempt, spawns=reconcile.MAX_SPAWNS)
    jobs.reconcile()
    assert jobs.store.get(job.id).state is JobState.LOST
    assert not any(bench.runs(pid) for pid in bench.starts(jobs, job))
