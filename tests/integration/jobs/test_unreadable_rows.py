"""A live job whose row does not read, because another version wrote it: the others go on."""

from typing import Any

import pytest

from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.service import Jobs

pytestmark = pytest.mark.timeout(60)


def test_the_job_behind_it_gets_a_supervisor_again_and_its_turn(
    bench: Any, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, other = bench.unfollowed(jobs), bench.unfollowed(jobs, epochs=1)
    with jobs.store.database.write() as connection:
        connection.execute("UPDATE jobs SET plan = json_set(plan, '$.colour', 'red') WHERE id = ?", (stuck.id,))
    assert jobs.reconcile() == [other.id]
    assert bench.finish(jobs, other).state is JobState.SUCCEEDED
    (told,) = [message for message in caplog.messages if stuck.id in message]
    assert f"DELETE FROM jobs WHERE id = '{stuck.id}'" in told
