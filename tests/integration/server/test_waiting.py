"""A wait that expires is data: the id, where the job stands, and that the same call goes on."""

import os
from typing import Any

import anyio
import pytest
from mcp import Client

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.planning.request import TrainRequest
from mask2former_mcp.platforms.process import identify
from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services

ID = "train-7f3k9q2d"


@pytest.mark.parametrize(
    ("walk", "message"),
    [
        ((), ""),
        ((JobState.PREPARING, JobState.RUNNING), "This is a study of one trial."),
        ((JobState.PREPARING, JobState.RUNNING), "Attempt 2: goes on from epoch 3."),
    ],
)
def test_an_expired_wait_says_still_and_what_to_call(
    environ: dict[str, str], tiny_training: dict[str, Any], walk: tuple[JobState, ...], message: str
) -> None:
    services = Services(environ)
    plan = services.planner.plan(TrainRequest(**tiny_training))
    job = Job(
        id=ID,
        action="train",
        state=JobState.QUEUED,
        plan=plan,
        created_at=1.0,
        results_dir=f"jobs/{ID}/results",
        study_id=ID,
        trial=0,
        message=message,
    )
    services.jobs.store.insert(job)
    services.jobs.store.note_supervisor(ID, dict(identify(os.getpid()) or {}), spawned=False)  # this process follows it
    stand = JobState.QUEUED
    for state in walk:
        services.jobs.store.transition(ID, state, expect=(stand,), text="walked")
        stand = state

    async def wait() -> Any:
        async with Client(build(services, reconcile=False)) as client:
            return await client.call_tool("wait_for_job", {"job_id": ID, "timeout_s": 0})

    answer = anyio.run(wait)
    assert not answer.is_error
    facts = answer.structured_content
    assert (facts["job_id"], facts["status"]) == (ID, stand.value)
    assert facts["message"] == f"Still {stand.value}: it goes on, call wait_for_job again. {message}".strip()
    assert facts["next"] == f"wait_for_job(job_id='{ID}')"
