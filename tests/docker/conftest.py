"""What tests on a real Docker Engine share: a server with platform=docker, and a daemon that may be restarted."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from docker.errors import DockerException
from mcp import Client
from mcp.client.stdio import StdioServerParameters

import docker

TERMINAL = {"succeeded", "failed", "cancelled", "lost"}
KEY = "a-secret-that-is-planted"
PATIENCE_S = 60.0


class Talk:
    """What a client asks again and again; every answer is searched for the planted secret."""

    terminal = TERMINAL
    key = KEY

    async def facts(self, client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        result = await client.call_tool(tool, arguments)
        assert not result.is_error, (tool, result.content)
        assert KEY not in str(result)
        found: dict[str, Any] = result.structured_content
        return found

    async def finished(self, client: Client, job: dict[str, Any], patience_s: float = 300) -> dict[str, Any]:
        with anyio.fail_after(patience_s):
            while job["status"] not in TERMINAL:
                job = await self.facts(client, "wait_for_job", {"job_id": job["job_id"], "timeout_s": 10})
        if job["status"] != "succeeded":
            raise AssertionError((job, (await client.call_tool("get_job_logs", {"job_id": job["job_id"]})).content))
        return job

    async def running(self, client: Client, job_id: str, progress: float = 0.0) -> dict[str, Any]:
        """The job's container, once it has got further than `progress`."""
        with anyio.fail_after(120):
            while (job := await self.facts(client, "get_job", {"job_id": job_id}))["progress"] <= progress:
                assert job["status"] not in TERMINAL, job["message"]
                await anyio.sleep(0.2)
        (container,) = self.containers(job_id)
        return container

    def containers(self, job_id: str) -> list[dict[str, Any]]:
        api = docker.APIClient(base_url=os.environ.get("DOCKER_HOST"), version="auto")
        found = api.containers(all=True, filters={"label": f"org.mask2former-mcp.job={job_id}"})
        return [api.inspect_container(one["Id"]) for one in found]


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def on_docker(stdio: StdioServerParameters) -> StdioServerParameters:
    """The server with platform=docker and secrets in its environment."""
    planted = {
        "M2F_PLATFORM": "docker",
        "M2F_ENGINE_IMAGE": os.environ.get("M2F_TEST_ENGINE_IMAGE", "mask2former-engine:latest"),
        "M2F_CONTAINER_MEMORY_GB": "4",
        "M2F_CONTAINER_SHM_GB": "0.5",
        "M2F_ENCRYPTION_KEY": KEY,
        "WANDB_API_KEY": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "NGC_API_KEY": KEY,
    }
    return stdio.model_copy(update={"env": {**(stdio.env or {}), **planted}})


class Dockerd:
    """The daemon of these tests, which they may end and start again."""

    def __init__(self, command: list[str], pidfile: Path) -> None:
        self.command, self.pidfile = command, pidfile

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends when the process has ended, and its containerd: the next dockerd would wait for a dying one in vain."""
        process = psutil.Process(int(self.pidfile.read_text()))
        family = [process, *process.children()]
        process.send_signal(number)
        _, alive = psutil.wait_procs(family, PATIENCE_S)
        assert not alive, alive

    def start(self, *flags: str) -> None:
        """Ends when it answers. Later flags win over those of the command."""
        self.pidfile.unlink(missing_ok=True)
        command = [word for word in self.command if not any(word.startswith(flag.split("=")[0]) for flag in flags)]
        with Path(f"{self.pidfile}.log").open("ab") as log:
            subprocess.Popen(
                [*command, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert time.monotonic() < deadline, f"dockerd does not answer, see {self.pidfile}.log"
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            api = docker.APIClient(base_url=os.environ.get("DOCKER_HOST"), version="auto", timeout=5)
            return bool(api.ping()) and self.pidfile.exists()  # type: ignore[no-untyped-call] # no stub
        except DockerException:
            return False


@pytest.fixture
def dockerd() -> Iterator[Dockerd]:
    """Only where whoever runs the tests says how: .ci/docker does, of the daemon that it started."""
    command, pidfile = os.environ.get("M2F_TEST_DOCKERD"), os.environ.get("M2F_TEST_DOCKERD_PIDFILE")
    if not command or not pidfile:
        pytest.skip("M2F_TEST_DOCKERD does not say how to start this daemon again")
    daemon = Dockerd(shlex.split(command), Path(pidfile))
    yield daemon
    if daemon._answers():
        daemon.stop()
    daemon.start()
