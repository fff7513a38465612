"""No call outlasts the patience of a client; what was given up does not start a job later."""

import threading
from typing import Any

import anyio
import pytest
from mcp import Client

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
