"""Images from a real registry: progress in the job's phase, login, refusals told apart, a stop in the middle.

The registry is Debian's docker-registry on the loopback; a relay in front of it is slow, so that there is something to
see. dockerd takes registries on the loopback without TLS.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import docker
from mask2former_mcp.errors import ImageNotAvailable
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.plan import AutomlDecision, Estimate, Plan
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.platforms.docker_daemon import Daemon, Login
from mask2former_mcp.platforms.docker_image import bring
from mask2former_mcp.server import docker_check
from mask2former_mcp.settings import Settings

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="needs Debian's docker-registry"),
]
BASE_IMAGE = os.environ.get("M2F_TEST_BASE_IMAGE", "m2f-base:bookworm")
USER, PASSWORD = "$oauthtoken", "nvapi-planted-secret"
HTPASSWD = "$oauthtoken:$2b$04$DkhH/EghoUx01eOrMLOYiu7mOUYOUNzPliNe3/w1Kt3hQu4eIVNHa\n"
LAYER_BYTES = 12_000_000
PATIENCE_S = 30.0

ENGINE = b"""#!/usr/bin/env python3
import json
from pathlib import Path
folder = Path("/results/train")
folder.mkdir(parents=True, exist_ok=True)
(folder / "model_epoch_000_step_00009.pth").write_bytes(b"weights")
line = {"date": "1/2/2026", "time": "3:4:5", "status": "SUCCESS", "verbosity": "INFO"}
(folder / "status.json").write_text(json.dumps({**line, "message": "Train finished successfully."}) + "\\n")
"""


@dataclass
class Relay:
    """Passes bytes on to a port, at most so many a second towards the client."""

    to: int
    bytes_per_s: float = 1e12
    port: int = 0
    _listener: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        try:
            while data := source.recv(65536):
                if slow and len(data) > 4096:
                    time.sleep(len(data) / self.bytes_per_s)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                end.close()


@dataclass
class Registry:
    """`image` is in it and not on the daemon; `login` is what it wants, if anything."""

    relay: Relay
    image: str
    login: Login | None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.relay.port}"

    @property
    def logins(self) -> dict[str, Login]:
        return {self.host: self.login} if self.login else {}


@pytest.fixture
def layer() -> str:
    """The base, an engine that does nothing, something to carry. Without a name: it goes with the last that it gets."""
    api = docker.APIClient(base_url=os.environ.get("DOCKER_HOST"), version="auto")
    container = api.create_container(BASE_IMAGE, command=["none"])["Id"]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in (("usr/local/bin/mask2former", ENGINE), ("opt/ballast", os.urandom(LAYER_BYTES))):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    api.put_archive(container, "/", packed.getvalue())
    image = str(api.commit(container)["Id"])
    api.remove_container(container)
    return image


@pytest.fixture(params=["open"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, layer: str) -> Iterator[Registry]:
    folder = tmp_path / "registry"
    folder.mkdir()
    port = free_port()
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    login = None
    if request.param == "closed":
        (folder / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
        login = Login(USER, PASSWORD)
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(folder / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    relay = Relay(port)
    until(lambda: connects(port), "the registry to answer")
    found = Registry(relay, f"127.0.0.1:{relay.port}/m2f/probe:1", login)
    push(found, layer)
    yield found
    process.kill()
    process.wait()
    relay.close()
    api = docker.APIClient(base_url=os.environ.get("DOCKER_HOST"), version="auto")
    if api.images(found.image.rpartition(":")[0]):
        api.remove_image(found.image, force=True)


def push(registry: Registry, layer: str) -> None:
    """Into the registry, and away from the daemon, all but the base's layers."""
    api = docker.APIClient(base_url=os.environ.get("DOCKER_HOST"), version="auto")
    api.tag(layer, registry.image.rpartition(":")[0], "1")
    auth = registry.login.config if registry.login else {"username": "", "password": ""}
    told = list(api.push(registry.image, stream=True, decode=True, auth_config=auth))
    assert not [event for event in told if "error" in event], told
    api.remove_image(registry.image)


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value


def daemon() -> Daemon:
    return Daemon(os.environ.get("DOCKER_HOST"))


def silent(what: str, done: float) -> None:
    pass


@pytest.mark.parametrize("registry", ["closed"], indirect=True)
def test_a_registry_that_wants_a_login_gets_the_right_one_and_refuses_others(registry: Registry) -> None:
    for known in ({}, {registry.host: Login(USER, "wrong")}):
        with pytest.raises(ImageNotAvailable) as raised:
            bring(daemon(), registry.image, known, silent)
        assert raised.value.details["reason"] == "unauthorized", raised.value
        assert registry.host in raised.value.fix
    bring(daemon(), registry.image, registry.logins, silent)
    assert daemon().has_image(registry.image)


def test_what_is_not_there_and_who_is_not_there_are_told_apart(registry: Registry) -> None:
    with pytest.raises(ImageNotAvailable) as raised:
        bring(daemon(), registry.image.replace(":1", ":2").replace("probe:2", "probe:nine"), {}, silent)
    assert raised.value.details["reason"] == "unknown_image", raised.value
    with pytest.raises(ImageNotAvailable) as raised:
        bring(daemon(), f"127.0.0.1:{free_port()}/m2f/probe:1", {}, silent)
    assert raised.value.details["reason"] == "no_network", raised.value


def test_doctor_says_whether_an_image_could_be_pulled_without_pulling_it(registry: Registry, tmp_path: Path) -> None:
    environ = {"DOCKER_HOST": os.environ.get("DOCKER_HOST", ""), "NGC_API_KEY": PASSWORD}
    images = (registry.image, registry.image.replace("probe", "nothing"))
    found = list(docker_check.look(Settings(home=tmp_path / "home"), images, environ))
    there, missing = (check for check in found if check[0] == "docker image")
    assert (there[1], "the first job pulls it" in there[2]) == ("ok", True)
    assert (missing[1], bool(missing[3])) == ("error", True)
    (login,) = (check for check in found if check[0] == "docker login")
    assert "nvcr.io (by NGC_API_KEY)" in login[2]
    assert PASSWORD not in str(found)
    assert not daemon().has_image(registry.image)


# --- through a job ---------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    settings = Settings(
        home=tmp_path / "home", gpus="none", platform="docker", container_memory_gb=0.5, container_shm_gb=0.1,
        poll_s=0.05, python=sys.executable,
    )  # fmt: skip
    environ = {**os.environ, "NGC_API_KEY": PASSWORD}
    service = Jobs(settings, {name: value for name, value in environ.items() if not name.startswith("M2F_")})
    yield service
    for job in service.list()[0]:
        if not job.state.terminal:
            service.cancel(job.id)
            service.wait(job.id, PATIENCE_S)
    service.close()


def plan(image: str) -> Plan:
    return Plan(
        action="train",
        automl=AutomlDecision(policy="off", route="direct", source="argument", reason="test"),
        spec_overrides={},
        spec={"results_dir": "{results_dir}", "train": {"num_gpus": 1, "num_epochs": 1}},
        command=("mask2former", "train", "-e", "{job_dir}/spec.yaml"),
        image=image,
        platform="docker",
        runtime="engine",
        estimate=Estimate(gpus=0, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="table"),
        digest="d" * 64,
        artifacts=("train/model_epoch_*.pth",),
    )


def test_the_phase_of_the_job_tells_how_far_the_pull_is(registry: Registry, jobs: Jobs, tmp_path: Path) -> None:
    registry.relay.bytes_per_s = LAYER_BYTES / 3
    job = jobs.submit(plan(registry.image))
    phases = dict[str, None]()

    def ended() -> bool:
        found = jobs.store.get(job.id)
        phases[found.phase] = None
        return found.state.terminal

    until(ended, "the job to end")
    last = jobs.get(job.id)
    assert last.state is JobState.SUCCEEDED, (last, jobs.views.logs(job.id).lines)
    pulling = [phase for phase in phases if phase.startswith(f"pulling image {registry.image} (")]
    parts = [int(phase.rpartition("(")[2].rstrip("%)")) for phase in pulling]
    assert len(parts) > 5, list(phases)
    assert parts == sorted(parts)
    assert 0 < parts[0] < 50 < parts[-1] <= 100
    holders = [
        path for path in (tmp_path / "home").rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()
    ]
    assert holders == []


def test_a_job_that_is_cancelled_while_its_image_comes_ends_at_once(registry: Registry, jobs: Jobs) -> None:
    registry.relay.bytes_per_s = LAYER_BYTES / 60
    job = jobs.submit(plan(registry.image))
    until(lambda: "pulling image" in jobs.store.get(job.id).phase, "the pull to begin")
    began = time.monotonic()
    jobs.cancel(job.id)
    ended = jobs.wait(job.id, PATIENCE_S)
    assert ended.state is JobState.CANCELLED, ended
    assert time.monotonic() - began < 15
    assert not daemon().has_image(registry.image)


def test_a_job_whose_image_is_refused_fails_with_the_advice(registry: Registry, jobs: Jobs) -> None:
    ended = jobs.wait(jobs.submit(plan(registry.image.replace("probe", "nothing"))).id, PATIENCE_S)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "image_not_available")
    assert "Correct the image's name and tag" in ended.message


def test_a_supervisor_killed_in_the_middle_of_a_pull_is_replaced_and_the_job_ends_well(
    registry: Registry, jobs: Jobs
) -> None:
    registry.relay.bytes_per_s = LAYER_BYTES / 3
    job = jobs.submit(plan(registry.image))
    until(lambda: "pulling image" in jobs.store.get(job.id).phase, "the pull to begin")
    supervisor = jobs.store.get(job.id).supervisor
    assert supervisor is not None
    os.kill(int(supervisor["pid"]), 9)
    ended = jobs.wait(job.id, PATIENCE_S)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1), ended
