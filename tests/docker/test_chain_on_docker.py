"""The main job on a real Docker Engine with the engine's image, through the MCP server on real images."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

import docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
TERMINAL = {"succeeded", "failed", "cancelled", "lost"}
KEY = "a-secret-that-is-planted"


@pytest.fixture
def on_docker(stdio: Any) -> Any:
    """The server with platform=docker and secrets in its environment."""
    planted = {
        "M2F_PLATFORM": "docker",
        "M2F_ENGINE_IMAGE": os.environ.get("M2F_TEST_ENGINE_IMAGE", "mask2former-engine:latest"),
        "M2F_CONTAINER_MEMORY_GB": "4",
        "M2F_CONTAINER_SHM_GB": "0.5",
        "M2F_ENCRYPTION_KEY": KEY,
        "WANDB_API_KEY": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
    }
    return stdio.model_copy(update={"env": {**stdio.env, **planted}})


async def facts(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, (tool, result.content)
    assert KEY not in str(result)
    return result.structured_content


async def finished(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    with anyio.fail_after(300):
        while job["status"] not in TERMINAL:
            job = await facts(client, "wait_for_job", {"job_id": job["job_id"], "timeout_s": 10})
    if job["status"] != "succeeded":
        raise AssertionError((job, (await client.call_tool("get_job_logs", {"job_id": job["job_id"]})).content))
    return job


def containers(job_id: str) -> list[dict[str, Any]]:
    api = docker.APIClient(version="auto")
    found = api.containers(all=True, filters={"label": f"org.mask2former-mcp.job={job_id}"})
    return [api.inspect_container(one["Id"]) for one in found]


async def running(client: Client, job_id: str) -> dict[str, Any]:
    """The job's container, once it trains."""
    with anyio.fail_after(120):
        while (job := await facts(client, "get_job", {"job_id": job_id}))["progress"] == 0:
            assert job["status"] not in TERMINAL, job
            await anyio.sleep(0.2)
    (container,) = containers(job_id)
    return container


def test_the_chain_runs_in_hardened_containers_that_are_gone_afterwards(
    on_docker: Any, tiny_training: dict[str, Any], tmp_path: Path, processes: Any
) -> None:
    anyio.run(_chain, on_docker, tiny_training, tmp_path)


async def _chain(server: Any, tiny_training: dict[str, Any], tmp_path: Path) -> None:
    async with Client(server) as client:
        report = await facts(client, "doctor", {})
        assert report["ready"], report
        train = await facts(client, "train", {**tiny_training, "automl_policy": "off"})
        container = await running(client, train["job_id"])
        assert KEY not in json.dumps(container)
        host = container["HostConfig"]
        assert (host["CapDrop"], host["NetworkMode"], host["ReadonlyRootfs"]) == (["ALL"], "none", True)
        assert not container["Config"]["User"].startswith("0")
        assert [mount["Destination"] for mount in container["Mounts"] if mount["RW"]] in (
            ["/results", "/job"], ["/job", "/results"],
        )  # fmt: skip
        train = await finished(client, train)
        assert train["metrics"]["mIoU"] >= 0
        parent = {"parent_job_id": train["job_id"]}
        ids = [train["job_id"]]
        for tool in ("evaluate", "export", "inference"):
            job = await finished(client, await facts(client, tool, parent))
            ids.append(job["job_id"])
            files = (await facts(client, "list_artifacts", {"job_id": job["job_id"]}))["artifacts"]
            assert files, tool
        assert not [container for job_id in ids for container in containers(job_id)]
    holders = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert {path.name for path in holders} <= {"spec.yaml"}, holders
    assert all(path.stat().st_mode & 0o077 == 0 for path in holders)


def test_a_killed_supervisor_and_server_lose_nothing(
    on_docker: Any, tiny_training: dict[str, Any], processes: Any
) -> None:
    anyio.run(_kills, on_docker, {**tiny_training, "num_epochs": 6}, processes)


async def _kills(server: Any, training: dict[str, Any], processes: Any) -> None:
    async with Client(server) as client:
        job_id = (await facts(client, "train", {**training, "automl_policy": "off"}))["job_id"]
        before = await running(client, job_id)
        for part in ("jobs.supervisor", "server.py"):
            for process in processes(part):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.5)
        with pytest.raises(Exception):  # noqa: B017, PT011 - the connection is gone, however the client words it
            with anyio.fail_after(10):
                await facts(client, "get_job", {"job_id": job_id})
    async with Client(server) as client:
        job = await finished(client, await facts(client, "get_job", {"job_id": job_id}))
        assert job["status"] == "succeeded"
        log = await facts(client, "get_job_logs", {"job_id": job_id, "tail": 500})
        assert "attempt 2" not in str(log)
        assert before["State"]["Running"]
