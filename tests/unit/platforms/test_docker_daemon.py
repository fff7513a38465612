"""Log and refusals of a daemon on a socket that answers as Docker Engine does, of a container that is there."""

import json
import socketserver
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import PlatformAway
from mask2former_mcp.platforms import docker as docker_platform
from mask2former_mcp.platforms import docker_daemon
from mask2former_mcp.platforms.docker import DockerPlatform, Limits
from mask2former_mcp.platforms.docker_daemon import Daemon
from mask2former_mcp.platforms.protocol import Observation

HANDLE = {"platform": "docker", "container": "m2f-1", "run": "jobs/train-1/run/1", "log": "jobs/train-1/log.txt"}


@dataclass
class Engine:
    """What it answers: the container's state and log, or a refusal of each path that ends with a word."""

    state: dict[str, Any] = field(default_factory=lambda: {"Status": "running", "ExitCode": 0, "OOMKilled": False})
    log: bytes = b""
    refuses: dict[str, int] = field(default_factory=dict)


def handler(engine: Engine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address_string(self) -> str:
            return "local"

        def log_message(self, *words: object) -> None:
            pass

        def answer(self, body: bytes = b"", status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def act(self) -> None:
            path = self.path.partition("?")[0]
            status = next((code for word, code in engine.refuses.items() if path.endswith(word)), None)
            if status is not None:
                self.answer(json.dumps({"message": "layer is broken"}).encode(), status)
            elif path.endswith("/version"):
                self.answer(b'{"ApiVersion": "1.41", "Version": "20.10"}')
            elif path.endswith("/json"):
                self.answer(json.dumps({"State": engine.state, "Config": {"Tty": False}}).encode())
            elif path.endswith("/logs"):
                self.answer(struct.pack(">BxxxL", 1, len(engine.log)) + engine.log)
            else:
                self.answer(status=204)

        do_GET = do_POST = do_DELETE = act

    return Handler


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    answers = Engine()
    server = Server(str(tmp_path / "s"), handler(answers))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield answers
    server.shutdown()
    server.server_close()


@pytest.fixture
def platform(engine: Engine, tmp_path: Path) -> DockerPlatform:
    (tmp_path / HANDLE["run"]).mkdir(parents=True)
    return DockerPlatform(tmp_path, Limits(memory_gb=1), Daemon(f"unix://{tmp_path / 's'}"))


def at(second: int, text: bytes) -> bytes:
    return b"2026-01-01T00:00:0%d.000000000Z %s\n" % (second, text)


def test_a_progress_bar_is_one_line_and_no_position(engine: Engine, platform: DockerPlatform, tmp_path: Path) -> None:
    bar = b"\rEpoch 0:  50%|##  | 5/10\rEpoch 0: 100%|####| 10/10"
    engine.log = at(1, b"begins") + at(2, bar)
    assert platform.poll(HANDLE) == Observation("running")
    engine.log += at(3, b"goes on")
    assert platform.poll(HANDLE) == Observation("running")
    assert (tmp_path / HANDLE["log"]).read_bytes() == b"begins\n" + bar + b"\ngoes on\n"


def test_a_line_that_the_daemon_gave_no_time_goes_with_the_one_before(
    engine: Engine, platform: DockerPlatform, tmp_path: Path
) -> None:
    engine.log = at(1, b"one") + b"Epoch 0: without a time\n" + at(2, b"two")
    platform.poll(HANDLE)
    platform.poll(HANDLE)
    assert (tmp_path / HANDLE["log"]).read_text() == "one\nEpoch 0: without a time\ntwo\n"


def test_a_stored_position_that_is_no_time_is_passed_over(
    engine: Engine, platform: DockerPlatform, tmp_path: Path
) -> None:
    (tmp_path / HANDLE["run"] / "log_position").write_text("Epoch")
    engine.log = at(1, b"one")
    assert platform.poll(HANDLE) == Observation("running")
    assert (tmp_path / HANDLE["log"]).read_text() == "one\n"


@pytest.mark.parametrize("status", [403, 409, 500, 503])
@pytest.mark.parametrize("word", ["/m2f-1/json", "/logs"])
def test_a_daemon_in_trouble_is_asked_again_and_ends_nobody(
    engine: Engine, platform: DockerPlatform, word: str, status: int
) -> None:
    engine.refuses = {word: status}
    seen = platform.poll(HANDLE)
    assert (seen.state, seen.detail) == ("running", "waiting for the Docker daemon: layer is broken")
    engine.refuses = {}
    assert platform.poll(HANDLE) == Observation("running")


@pytest.mark.parametrize("word", ["/m2f-1/json", "/logs", "/stop", "/m2f-1"])
def test_a_container_that_cannot_be_ended_now_is_ended_later(
    engine: Engine, platform: DockerPlatform, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_platform, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(docker_daemon, "_AGAIN_S", 0.0)
    engine.refuses = {word: 500}
    with pytest.raises(PlatformAway, match="layer is broken"):
        platform.cancel(HANDLE, grace_s=1)
    engine.refuses = {}
    engine.state = {"Status": "exited", "ExitCode": 143, "OOMKilled": False}
    platform.cancel(HANDLE, grace_s=1)
    assert platform.poll(HANDLE).exit_code == 143
