"""A client's walk through train, evaluate, export, quantize and inference, for tests of one format each."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

TERMINAL = {"succeeded", "failed", "cancelled", "lost"}


@dataclass
class Walker:
    """One connected client that calls tools and waits for jobs."""

    client: Client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, (tool, result.content)
        return dict(result.structured_content or {})

    async def run(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Starts a job and waits for its success; its summary."""
        summary = await self.call(action, **arguments)
        with anyio.fail_after(120):
            while summary["status"] not in TERMINAL:
                summary = await self.call("wait_for_job", job_id=summary["job_id"], timeout_s=10)
        if summary["status"] != "succeeded":
            log = await self.client.call_tool("get_job_logs", {"job_id": summary["job_id"], "tail": 60})
            raise AssertionError((summary, log.content))
        return summary

    async def files(self, job_id: str) -> dict[str, Path]:
        """Name below the results folder -> path of each artifact."""
        listed = await self.call("list_artifacts", job_id=job_id, limit=100)
        return {item["path"]: Path(listed["folder"]) / item["path"] for item in listed["artifacts"]}


Walk = Callable[[Walker], Awaitable[None]]


@pytest.fixture
def walk(stdio: Any, processes: Any) -> Callable[[Walk], None]:
    """Runs a coroutine with a client of the real server; its processes are gone afterwards."""

    def run(steps: Walk) -> None:
        async def connected() -> None:
            async with Client(stdio) as client:
                await steps(Walker(client))

        anyio.run(connected)

    return run
