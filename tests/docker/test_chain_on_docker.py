"""The main job on a real Docker Engine with the engine's image, through the MCP server on real images."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


def test_the_chain_runs_in_hardened_containers_that_are_gone_afterwards(
    on_docker: Any, tiny_training: dict[str, Any], tmp_path: Path, processes: Any, talk: Any
) -> None:
    anyio.run(_chain, on_docker, tiny_training, tmp_path, talk)


async def _chain(server: Any, tiny_training: dict[str, Any], tmp_path: Path, talk: Any) -> None:
    facts, finished, running, containers = talk.facts, talk.finished, talk.running, talk.containers
    async with Client(server) as client:
        report = await facts(client, "doctor", {})
        assert report["ready"], report
        train = await facts(client, "train", {**tiny_training, "automl_policy": "off"})
        container = await running(client, train["job_id"])
        assert talk.key not in json.dumps(container)
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        assert any("/job/spec.yaml" in command for command in commands)  # those inside are seen from here
        assert not [command for command in commands if talk.key in command]
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
    holders = [
        path for path in (tmp_path / "home").rglob("*") if path.is_file() and talk.key.encode() in path.read_bytes()
    ]
    assert {path.name for path in holders} <= {"spec.yaml"}, holders
    assert all(path.stat().st_mode & 0o077 == 0 for path in holders)


def test_a_killed_supervisor_and_server_lose_nothing(
    on_docker: Any, tiny_training: dict[str, Any], processes: Any, talk: Any
) -> None:
    anyio.run(_kills, on_docker, {**tiny_training, "num_epochs": 6}, processes, talk)


async def _kills(server: Any, training: dict[str, Any], processes: Any, talk: Any) -> None:
    facts, finished, running = talk.facts, talk.finished, talk.running
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
