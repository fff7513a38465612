"""A platform that goes away around the start of a job: nothing is left behind, and no restart is spent on it."""

from typing import Any

import pytest

from mask2former_mcp.errors import PlatformAway
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.jobs.supervisor import Supervisor
from mask2former_mcp.platforms.local import LocalPlatform
from mask2former_mcp.platforms.protocol import Handle, Observation, Report, Task, silent

pytestmark = pytest.mark.timeout(60)


class Leaving(LocalPlatform):
    """Away for some questions after it was asked to start something, or from the beginning; starts are counted."""

    def __init__(self, bench: Any, *, away: int = 0, leaves: int = 0) -> None:
        super().__init__(bench.settings.home, bench.settings.engine)
        self.away, self.leaves, self.starts = away, leaves, 0

    def submit(self, task: Task, report: Report = silent) -> Handle:
        self.starts += 1
        if self.leaves:
            self.away, self.leaves = self.leaves, 0
            raise PlatformAway("it does not answer", fix="Start it.")
        return super().submit(task, report)

    def poll(self, handle: Handle) -> Observation:
        if self.away:
            self.away -= 1
            return Observation("running", detail="it does not answer", is_away=True)
        return super().poll(handle)


def queued(bench: Any, jobs: Jobs) -> Job:
    """In the store, without a supervisor."""
    plan = bench.plan()
    job, _ = jobs.store.insert(
        Job(id="train-1", action="train", state=JobState.QUEUED, plan=plan, created_at=1.0,
            results_dir="jobs/train-1/results")
    )  # fmt: skip
    Folders.of(bench.settings.home, job).job.mkdir(parents=True)
    return job


def run(bench: Any, jobs: Jobs, job: Job, platform: Leaving) -> Job:
    Supervisor(bench.settings, jobs.store, platform, bench.environ).run(job.id)
    return jobs.store.get(job.id)


def test_gone_in_the_middle_of_a_start_it_is_waited_for_and_asked_again(bench: Any, jobs: Jobs) -> None:
    platform = Leaving(bench, leaves=3)
    ended = run(bench, jobs, queued(bench, jobs), platform)
    assert (ended.state, ended.attempt, ended.restarts, platform.starts) == (JobState.SUCCEEDED, 1, 0, 2)


def handed_over(bench: Any, jobs: Jobs) -> Job:
    """Its supervisor died around the start."""
    job = queued(bench, jobs)
    jobs.store.transition(job.id, JobState.PREPARING, expect=(JobState.QUEUED,), text="its supervisor died later")
    jobs.store.update(job.id, 1, handle={"platform": "local", "run": "jobs/train-1/run/1", "log": "log.txt"})
    return job


def test_a_successor_does_not_take_what_cannot_be_asked_for_running(
    bench: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = handed_over(bench, jobs)
    platform = Leaving(bench, away=3)
    ask, phases = platform.poll, []

    def poll(handle: Handle) -> Observation:
        phases.append(jobs.store.get(job.id).phase)
        return ask(handle)

    monkeypatch.setattr(platform, "poll", poll)
    ended = run(bench, jobs, job, platform)
    assert (ended.state, ended.attempt, ended.restarts, platform.starts) == (JobState.SUCCEEDED, 1, 0, 1)
    assert phases[1:3] == ["it does not answer"] * 2


def test_a_successor_takes_what_is_about_to_end_for_running(
    bench: Any, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over(bench, jobs)
    platform = Leaving(bench)
    monkeypatch.setattr(platform, "poll", lambda _: Observation("running", detail="ending"))
    Supervisor(bench.settings, jobs.store, platform, bench.environ).start(jobs.store.get("train-1"))
    assert jobs.store.get("train-1").state is JobState.RUNNING
