"""No call outlasts the patience of a client; what was given up does not start a job later."""

import threading
from typing import Any

import anyio
import pytest
from mcp import Client

from mask2former_mcp.automl import resume
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.server import tool
from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services


def test_a_plan_that_takes_too_long_is_not_ready_and_starts_nothing_afterwards(
    environ: dict[str, str], tiny_training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = Services(environ)
    plan, go_on, ended = services.planner.plan, threading.Event(), threading.Event()

    def slow(request: Any) -> Any:
        assert go_on.wait(60)
        made = plan(request)
        ended.set()
        return made

    monkeypatch.setattr(tool, "LONGEST_S", 0.2)
    monkeypatch.setattr(services.planner, "plan", slow)

    async def ask() -> Any:
        async with Client(build(services, reconcile=False)) as client:
            answer = await client.call_tool("train", tiny_training)
            go_on.set()
            assert await anyio.to_thread.run_sync(ended.wait, 60)
            return answer

    answer = anyio.run(ask)
    assert answer.is_error
    assert answer.structured_content["code"] == "not_ready"
    assert "same arguments" in answer.structured_content["fix"]
    assert services.jobs.list()[0] == []


def failed(services: Services, training: dict[str, Any]) -> Job:
    """A job that can be resumed."""
    plan = services.planner.plan(tool.parse(REQUESTS["train"], training))
    job = Job(id="train-1", action="train", state=JobState.FAILED, plan=plan, created_at=1.0,
              results_dir="jobs/train-1/results")  # fmt: skip
    return services.jobs.store.insert(job)[0]


def test_a_resumption_whose_checks_take_too_long_does_not_happen_later(
    environ: dict[str, str], tiny_training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = Services(environ)
    job = failed(services, tiny_training)
    go_on, ended, resumed = threading.Event(), threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        assert go_on.wait(60)
        ended.set()

    monkeypatch.setattr(tool, "LONGEST_S", 0.2)
    monkeypatch.setattr(resume, "changes", slow)
    monkeypatch.setattr(services.jobs, "resume", lambda *_, **__: resumed.set())

    async def ask() -> Any:
        async with Client(build(services, reconcile=False)) as client:
            answer = await client.call_tool("resume_job", {"job_id": job.id})
            go_on.set()
            assert await anyio.to_thread.run_sync(ended.wait, 60)
            return answer

    assert anyio.run(ask).structured_content["code"] == "not_ready"
    assert not resumed.is_set()


def test_a_resumption_that_has_begun_is_answered_however_long_it_takes(
    environ: dict[str, str], tiny_training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = Services(environ)
    job, never = failed(services, tiny_training), threading.Event()

    def slow(*_: Any, **__: Any) -> Job:
        never.wait(1.2 * tool.LONGEST_S)
        return job

    monkeypatch.setattr(tool, "LONGEST_S", 1.0)
    monkeypatch.setattr(services.jobs, "resume", slow)

    async def ask() -> Any:
        async with Client(build(services, reconcile=False)) as client:
            return await client.call_tool("resume_job", {"job_id": job.id})

    answer = anyio.run(ask)
    assert not answer.is_error
    assert answer.structured_content["job_id"] == job.id
