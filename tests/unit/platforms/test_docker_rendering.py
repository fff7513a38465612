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
        self.images, self.lines, self.runtimes = True, [], {"runc": {}}
        self.options: list[str] = []
        self.components: list[dict[str, str]] = []

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
        if self.state["Status"] in ("dead", "removing"):
            raise Unreachable("can not get logs from container which is dead or marked for removal")
        return self.lines

    def has_image(self, image: str) -> bool:
        if "has_image" in self.fails:
            raise self.fails["has_image"]
        return self.images

    def info(self) -> dict[str, Any]:
        if "info" in self.fails:
            raise self.fails["info"]
        return {"Runtimes": self.runtimes, "SecurityOptions": self.options}

    def version(self) -> dict[str, Any]:
        return {"Components": self.components}


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
        "groups": (44, 1000),
    }
    return Task(**{**values, **fields})


def platform(home: Path, daemon: FakeDaemon, *secrets: str) -> DockerPlatform:
    return DockerPlatform(home, LIMITS, daemon, secrets)  # type: ignore[arg-type]


def test_the_whole_create_call_is_as_reviewed() -> None:
    home = Path("/srv/m2f")
    order = platform(home, FakeDaemon()).render(task(home, devices=("GPU-1f", "GPU-2c")))
    assert json.loads(json.dumps(order)) == json.loads(GOLDEN.read_text())


def test_the_whole_create_call_of_a_tao_container_is_as_reviewed() -> None:
    home = Path("/srv/m2f")
    chosen = task(
        home,
        image="nvcr.io/nvidia/tao/tao-toolkit:7.1.0-pyt",
        devices=("GPU-1f",),
        environment={"HOME": "/job/home", "TELEMETRY_OPT_OUT": "yes", "USER": "mask2former"},
        is_foreign=True,
    )
    order = platform(home, FakeDaemon()).render(chosen)
    assert json.loads(json.dumps(order)) == json.loads(GOLDEN.with_name("docker_create_tao.json").read_text())


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
        ({"fails": {"info": Unreachable("no socket")}}, "does not answer"),
        ({"fails": {"create": Unreachable("no socket")}}, "does not answer"),
        ({"fails": {"start": Refused('could not select device driver "nvidia"')}}, "could not be started"),
        ({"fails": {"start": Conflict("marked for removal")}}, "could not be started"),
        ({"fails": {"info": Refused("denied by a plugin")}}, "refuses to be asked"),
        ({"fails": {"has_image": Refused("invalid reference format")}}, "no such image"),
        ({"images": False}, "not on this Docker Engine"),
        ({"host": "tcp://192.0.2.7:2376"}, "asked over tcp, so it does not see the files"),
        ({"host": "ssh://me@far"}, "asked over ssh, so it does not see the files"),
        (
            {"fails": {"create": Refused("invalid mount config: bind source path does not exist: /srv/results")}},
            "finds no /srv/results, so it does not see the files",
        ),
        ({"components": [{"Name": "Podman Engine"}]}, "podman answers"),
        ({"options": ["name=seccomp,profile=default", "name=rootless"]}, "maps user ids"),
        ({"options": ["name=userns"]}, "maps user ids"),
    ],
)
def test_what_keeps_it_from_starting_is_told_apart(
    tmp_path: Path, broken: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask2former_mcp.platforms.docker._PATIENCE_AT_START_S", 0.0)
    monkeypatch.setattr("mask2former_mcp.platforms.docker_daemon._AGAIN_S", 0.0)
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
    daemon = FakeDaemon(Status="created")
    docker = platform(tmp_path, daemon)
    handle = docker.submit(task(tmp_path))
    daemon.state |= state
    assert docker.poll(handle) == seen


def test_a_daemon_that_is_away_is_waited_for_and_a_container_that_is_gone_is_missing(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    docker = platform(tmp_path, daemon)
    handle = docker.render(task(tmp_path))["handle"]
    daemon.fails["inspect"] = Unreachable("restarting")
    away = docker.poll(handle)
    assert away == Observation("running", detail="waiting for the Docker daemon: restarting", is_away=True)
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


def test_a_container_that_shows_no_log_any_more_is_ended_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask2former_mcp.platforms.docker._PATIENCE_S", 0.0)
    monkeypatch.setattr("mask2former_mcp.platforms.docker_daemon._AGAIN_S", 0.0)
    daemon = FakeDaemon()
    docker = platform(tmp_path, daemon)
    handle = docker.submit(task(tmp_path))
    daemon.state |= {"Status": "removing"}
    assert docker.poll(handle) == Observation("running")
    daemon.state |= {"Status": "dead", "ExitCode": 9}
    assert docker.poll(handle) == Observation("exited", exit_code=9)
    docker.cancel(handle, grace_s=1)
    assert daemon.done == ["create", "stop", "remove"]


ENDS = pytest.mark.parametrize(
    ("state", "cut_off"),
    [
        ({"Status": "exited", "ExitCode": 137}, True),
        ({"Status": "exited", "ExitCode": 143}, True),
        ({"Status": "exited", "ExitCode": 255}, True),  # what a daemon finds after the machine was started again
        ({"Status": "exited", "ExitCode": 0}, True),
        ({"Status": "exited", "ExitCode": 1}, False),
        ({"Status": "exited", "ExitCode": 137, "OOMKilled": True}, False),
    ],
)


@ENDS
def test_what_a_daemon_took_along_when_it_went_is_told_from_a_fault_of_the_program(
    tmp_path: Path, state: dict[str, Any], cut_off: bool
) -> None:
    daemon = FakeDaemon()
    docker = platform(tmp_path, daemon)
    handle = docker.submit(task(tmp_path))
    assert docker.poll(handle) == Observation("running")
    daemon.fails["inspect"] = Unreachable("restarting")
    docker.poll(handle)
    daemon.fails.clear()
    daemon.state |= state
    seen = docker.poll(handle)
    assert (seen.state, seen.cut_off, bool(seen.detail)) == ("exited", cut_off, cut_off)
    docker.cancel(handle, grace_s=1)
    assert platform(tmp_path, FakeDaemon()).poll(handle) == seen  # another supervisor, the container gone


@ENDS
def test_what_ended_while_its_supervisor_was_dead_may_have_gone_with_the_machine(
    tmp_path: Path, state: dict[str, Any], cut_off: bool
) -> None:
    daemon = FakeDaemon()
    first = platform(tmp_path, daemon)
    handle = first.submit(task(tmp_path))
    assert first.poll(handle) == Observation("running")
    daemon.state |= state
    successor = platform(tmp_path, daemon)
    seen = successor.poll(handle)
    assert (seen.state, seen.exit_code, seen.cut_off) == ("exited", state["ExitCode"], cut_off)
    successor.cancel(handle, grace_s=1)
    assert platform(tmp_path, FakeDaemon()).poll(handle) == seen


def test_a_container_that_outlived_the_daemon_and_is_ended_later_was_not_cut_off(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    docker = platform(tmp_path, daemon)
    handle = docker.submit(task(tmp_path))
    daemon.fails["inspect"] = Unreachable("restarting")
    docker.poll(handle)
    daemon.fails.clear()
    assert docker.poll(handle).detail == ""
    daemon.state |= {"Status": "exited", "ExitCode": 137}
    assert docker.poll(handle) == Observation("exited", exit_code=137)
