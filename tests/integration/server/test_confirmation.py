"""Nothing is cancelled or deleted without a yes: asked where the client can ask, demanded where it cannot."""

from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.types import ElicitResult

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.planning.request import TrainRequest
from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services

ERAS = ("legacy", "auto")


def saying(result: ElicitResult, asked: list[str]) -> Any:
    async def reply(_context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return result

    return reply


def delete(services: Services, job_id: str, *, era: str, confirm: bool = False, reply: Any = None) -> Any:
    async def ask() -> Any:
        async with Client(build(services, reconcile=False), mode=era, elicitation_callback=reply) as client:
            return await client.call_tool("delete_job", {"job_id": job_id, "confirm": confirm})

    return anyio.run(ask)


@pytest.fixture
def services(environ) -> Services:
    return Services(environ)


@pytest.fixture
def ended_job(services, tiny_training) -> str:
    """A job that was planned and stored for real, and ended without ever running."""
    plan = services.planner.plan(TrainRequest(**tiny_training))
    store = services.jobs.store
    store.insert(Job(id="train-7f3k9q2d", action="train", state=JobState.QUEUED, plan=plan, created_at=1.0))
    store.transition("train-7f3k9q2d", JobState.FAILED, expect=(JobState.QUEUED,), text="made to fail")
    return "train-7f3k9q2d"


@pytest.mark.parametrize("era", ERAS)
def test_a_client_that_cannot_ask_must_confirm(services, ended_job, era):
    refused = delete(services, ended_job, era=era)
    assert refused.is_error
    assert refused.structured_content["code"] == "confirmation_required"
    assert "confirm=true" in refused.structured_content["fix"]
    assert services.jobs.get(ended_job)
    assert not delete(services, ended_job, era=era, confirm=True).is_error


@pytest.mark.parametrize("era", ERAS)
def test_a_client_that_can_ask_is_asked_and_yes_deletes(services, ended_job, era):
    asked: list[str] = []
    yes = ElicitResult(action="accept", content={"confirm": True})
    result = delete(services, ended_job, era=era, reply=saying(yes, asked))
    assert not result.is_error, result.content
    assert len(asked) == 1
    assert ended_job in asked[0]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    "reply",
    [
        ElicitResult(action="decline"),
        ElicitResult(action="cancel"),
        ElicitResult(action="accept", content={"confirm": False}),
    ],
)
def test_a_no_in_any_form_deletes_nothing(services, ended_job, era, reply):
    result = delete(services, ended_job, era=era, reply=saying(reply, []))
    assert result.is_error
    assert result.structured_content["code"] == "confirmation_required"
    assert services.jobs.get(ended_job)


def test_a_job_that_cannot_be_deleted_is_refused_before_anybody_is_asked(services, ended_job):
    services.jobs.store.resume(ended_job, expect=JobState.FAILED, attempt=1, changes={})
    asked: list[str] = []
    yes = ElicitResult(action="accept", content={"confirm": True})
    refused = delete(services, ended_job, era="auto", reply=saying(yes, asked))
    assert refused.structured_content["code"] == "wrong_state"
    assert asked == []
