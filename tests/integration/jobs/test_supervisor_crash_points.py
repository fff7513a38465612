"""A supervisor that dies before any one of its writes, or before it starts the trainer: a successor brings the job to
its end, and there is one start."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.leases import Leases
from mask2former_mcp.jobs.service import Jobs

pytestmark = pytest.mark.timeout(60)
LAST = 14  # of a training of one epoch; how often its status is stored depends on the pace

# The real supervisor, until `left` of the steps that others can see are done.
DOOMED = """
import os, sys
from mask2former_mcp.jobs import supervisor
from mask2former_mcp.jobs.database import Database
from mask2former_mcp.platforms.local import LocalPlatform

left = int(sys.argv[2])

def last(step):
    def counted(*values, **named):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return step(*values, **named)
    return counted

Database.write, LocalPlatform.submit = last(Database.write), last(LocalPlatform.submit)
sys.exit(supervisor.main(["--job", sys.argv[1]]))
"""


@pytest.mark.parametrize("step", range(1, LAST + 1))
def test_whatever_step_is_the_last_the_successor_brings_the_job_to_its_end(bench: Any, jobs: Jobs, step: int) -> None:
    job = bench.unfollowed(jobs, epochs=1)
    source = str(Path(__file__).parents[3] / "src")
    doomed = subprocess.run(
        [sys.executable, "-c", DOOMED, job.id, str(step)],
        env=bench.settings.environment(bench.environ) | {"PYTHONPATH": source}, timeout=30, check=False,
    )  # fmt: skip
    assert doomed.returncode == 9 or (doomed.returncode == 0 and step > 10)
    ended = bench.finish(jobs, job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
    assert len(bench.starts(jobs, job)) == 1
    assert bench.never_two(jobs, job)
    assert Leases(jobs.store.database).held(job.id) == ()
    path = [event.to_state for event in jobs.events(job.id)]
    assert path == [JobState.QUEUED, JobState.PREPARING, JobState.RUNNING, JobState.SUCCEEDED]
