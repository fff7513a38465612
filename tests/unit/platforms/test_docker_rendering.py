"""The whole create call of a container, and what the daemon's answers become, without a daemon."""

import json
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import NotAvailable
from mask2former_mcp.platforms.docker import DockerPlatform, Limits
from mask2former_mcp.platforms.docker_daemon import Conflict, Gone, Refused, Unreachable
from mask2former_mcp.platforms.protocol import Bind, Observation, Task

GOLDEN = Path(__file__).parents[2] / "goldens" / "docker_create.json"
LIMITS = Limits(memory_gb=24, cpus=6)


class FakeDaemon:
    """Answers what a test says; keeps what it was asked to do."""

    host = "unix:///var/run/docker.sock"

    def __init__(self, **state: Any) -> None:
        self.state = {"Status": "running", "ExitCode": 0, "OOMKilled": False, **state}
        self.fails: dict[str, Exception] = {}
        self.done: list[str] = []
        self.images, self.lines, self.runtimes, self.local = True, [], {"runc": {}}, True

    def _step(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]
        self.done.append(name)

    def create(self, name: str, config: Any) -> None:
        self._step("create")

    def start(self, name: str) -> None:
        self._step("start")

    def stop(self, name: str, grace_s: float) -> None:
        self._step("stop")

    def remove(self, name: str) -> None:
        self._step("remove")

    def inspect(self, name: str) -> dict[str, Any]:
        if "inspect" in self.fails:
            raise self.fails["inspect"]
        return {"State": self.state}

    def log(self, name: str, *, since: str = "") -> list[bytes]:
        return self.lines

    def has_image(self, image: str) -> bool:
        return self.images

    def info(self) -> dict[str, Any]:
        return {"Runtimes": self.runtimes}

    def is_local(self) -> bool:
        return self.local


def task(home: Path, **fields: Any) -> Task:
    job = home / "jobs" / "train-7f3k9q2d"
    values: dict[str, Any] = {
        "job_id": "train-7f3k9q2d",
        "attempt": 2,
        "command": ("mask2former", "train", "-e", "/job/spec.yaml"),
        "job_dir": job,
        "results_dir": job / "results",
        "log_file": job / "log.txt",
        "devices": (),
        "image": "mask2former-engine:latest",
        "environment": {"HOME": "/job/home", "USER": "mask2former"},
        "digest": "d" * 64,
        "binds": (Bind(job / "results", "/results", read_only=False), Bind(Path("/data/belt"), "/data/0/belt")),
        "user": (65532, 65532),
    }
    return Task(**{**values, **fields})


def platform(home: Path, daemon: FakeDaemon, *secrets: str) -> DockerPlatform:
    return DockerPlatform(home, LIMITS, daemon, secrets)  # type: ignore[arg-type]


def test_the_whole_create_call_is_as_reviewed() -> None:
    home = Path("/srv/m2f")
    order = platform(home, FakeDaemon()).render(task(home, devices=("GPU-1f", "GPU-2c")))
    assert json.loads(json.dumps(order)) == json.loads(GOLDEN.read_text())


def test_a_name_that_is_taken_is_the_earlier_start_and_a_created_container_is_started(tmp_path: Path) -> None:
    daemon = FakeDaemon(Status="created")
    daemon.fails["create"] = Conflict("in use")
    platform(tmp_path, daemon).submit(task(tmp_path))
    assert daemon.done == ["start"]
    daemon = FakeDaemon(Status="exited")
    daemon.fails["create"] = Conflict("in use")
    platform(tmp_path, daemon).submit(task(tmp_path))
    assert daemon.done == []


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"fails": {"create": Unreachable("no socket")}}, "does not answer"),
        ({"fails": {"start": Refused('could not select device driver "nvidia"')}}, "could not be started"),
        ({"images": False}, "not on this Docker Engine"),
        ({"local": False}, "does not see the files"),
    ],
)
def test_what_keeps_it_from_starting_is_told_apart(tmp_path: Path, broken: dict[str, Any], words: str) -> None:
    daemon = FakeDaemon(Status="created")
    for name, value in broken.items():
        setattr(daemon, name, value)
    with pytest.raises(NotAvailable, match=words) as raised:
        platform(tmp_path, daemon).submit(task(tmp_path))
    assert raised.value.fix
    assert "start" not in daemon.done


def test_a_failed_start_leaves_no_container(tmp_path: Path) -> None:
    daemon = FakeDaemon(Status="created")
    daemon.fails["start"] = Refused("boom")
    with pytest.raises(NotAvailable):
        platform(tmp_path, daemon).submit(task(tmp_path))
    assert daemon.done == ["create", "remove"]


def test_gpus_need_the_nvidia_runtime(tmp_path: Path) -> None:
    daemon = FakeDaemon(Status="created")
    with pytest.raises(NotAvailable, match="NVIDIA runtime"):
        platform(tmp_path, daemon).submit(task(tmp_path, devices=("GPU-1",)))
    daemon.runtimes = {"nvidia": {}}
    platform(tmp_path, daemon).submit(task(tmp_path, devices=("GPU-1",)))
    assert daemon.done == ["create", "start"]


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        ({"Status": "running"}, Observation("running")),
        ({"Status": "exited", "ExitCode": 3}, Observation("exited", exit_code=3)),
        ({"Status": "exited", "ExitCode": 137}, Observation("exited", exit_code=137)),
        (
            {"Status": "exited", "ExitCode": 137, "OOMKilled": True},
            Observation("exited", exit_code=137, out_of_memory=True),
        ),
        ({"Status": "exited", "OOMKilled": True}, Observation("exited", exit_code=0, out_of_memory=True)),
    ],
)
def test_a_memory_kill_is_told_from_a_plain_one(tmp_path: Path, state: dict[str, Any], seen: Observation) -> None:
    docker = platform(tmp_path, FakeDaemon(**state))
    assert docker.poll(docker.render(task(tmp_path))["handle"]) == seen


def test_a_daemon_that_is_away_is_waited_for_and_a_container_that_is_gone_is_missing(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    docker = platform(tmp_path, daemon)
    handle = docker.render(task(tmp_path))["handle"]
    daemon.fails["inspect"] = Unreachable("restarting")
    assert docker.poll(handle).state == "running"
    daemon.fails["inspect"] = Gone("no such container")
    assert docker.poll(handle).state == "missing"


def test_the_log_is_copied_once_masked_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    docker = platform(tmp_path, daemon, "hunter2")
    chosen = task(tmp_path)
    handle = docker.submit(chosen)
    daemon.lines = [b"2026-01-01T00:00:00.000000001Z the key is hunter2\n", b"2026-01-01T00:00:00.000000002Z two\n"]
    docker.poll(handle)
    docker.poll(handle)
    daemon.lines = [*daemon.lines, b"2026-01-01T00:00:00.000000003Z three\n"]
    docker.poll(handle)
    assert chosen.log_file.read_text() == "the key is ***\ntwo\nthree\n"


def test_the_end_is_recorded_before_the_container_goes(tmp_path: Path) -> None:
    daemon = FakeDaemon(Status="exited", ExitCode=7)
    docker = platform(tmp_path, daemon)
    handle = docker.submit(task(tmp_path))
    docker.cancel(handle, grace_s=1)
    daemon.fails["inspect"] = Gone("removed")
    assert docker.poll(handle) == Observation("exited", exit_code=7)
    assert daemon.done == ["create", "stop", "remove"]
    docker.submit(task(tmp_path))
    assert daemon.done == ["create", "stop", "remove"]
