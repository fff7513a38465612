"""Starts that fail half-way, on a platform that is the real one with one fault."""

from typing import Any

import pytest

from mask2former_mcp.errors import NotAvailable, PlatformAway
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.jobs.supervisor import Supervisor
from mask2former_mcp.platforms.local import LocalPlatform
from mask2former_mcp.platforms.process import labelled
from mask2former_mcp.platforms.protocol import Handle, Report, Task, silent

pytestmark = pytest.mark.timeout(60)


class Faulty(LocalPlatform):
    """Raises each of `before` in a try of its own, and once the command runs, `after`."""

    def __init__(self, jobs: Jobs, *before: Exception, after: Exception | None = None) -> None:
        super().__init__(jobs.settings.home, jobs.settings.engine)
        self.before, self.after = list(before), after

    def submit(self, task: Task, report: Report = silent) -> Handle:
        if self.before:
            raise self.before.pop()
        handle = super().submit(task, report)
        if self.after is not None:
            raise self.after
        return handle


def followed(bench: Any, jobs: Jobs, platform: LocalPlatform, **fake: Any) -> Job:
    """A job that a supervisor on this platform brings to its end."""
    job = bench.unfollowed(jobs, epochs=1, fake=fake)
    Supervisor(jobs.settings, jobs.store, platform, jobs.environ).run(job.id)
    return jobs.store.get(job.id)


def test_what_was_started_by_a_start_that_failed_is_ended_before_its_devices_are_given_back(
    bench: Any, jobs: Jobs
) -> None:
    broken = Faulty(jobs, after=NotAvailable("it answers nonsense", fix="Repair it."))
    ended = followed(bench, jobs, broken, hang_at=0)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "not_available")
    assert not labelled("M2F_RUN", str(bench.job_dir(ended) / "run/1"))


def test_a_platform_that_is_away_at_the_start_is_waited_for(bench: Any, jobs: Jobs) -> None:
    away = PlatformAway("the daemon does not answer", fix="Start it.")
    ended = followed(bench, jobs, Faulty(jobs, away, away))
    assert (ended.state, ended.attempt, len(bench.starts(jobs, ended))) == (JobState.SUCCEEDED, 1, 1)
