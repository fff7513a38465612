"""What doctor says of a Docker Engine, against a daemon on a socket that answers as one of many kinds does."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from mask2former_mcp.server import docker_check
from mask2former_mcp.settings import Settings

OURS, NVIDIAS = "mask2former-engine:latest", "nvcr.io/nvidia/tao/tao-toolkit:7.0.1-pyt"
KEY = "nvapi-a-secret"
Look = Callable[..., dict[str, tuple[str, str, str]]]


@dataclass
class Engine:
    """Its answers: path without the version -> (status, body)."""

    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def healthy(self, **info: Any) -> None:
        self.answers["/version"] = (200, {"ApiVersion": "1.41", "Version": "20.10.24", "Components": []})
        runtimes = {"Runtimes": {"runc": {}, "nvidia": {}}, "DockerRootDir": "/", "SecurityOptions": []}
        self.answers["/info"] = (
            200, {"ServerVersion": "20.10.24", "Driver": "overlay2", "LiveRestoreEnabled": True, **runtimes, **info},
        )  # fmt: skip
        self.answers[f"/images/{OURS}/json"] = (200, {"Id": "sha256:0"})
        self.answers["/containers/create"] = (201, {"Id": "c0", "Warnings": []})


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine()
    engine.healthy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address_string(self) -> str:
            return "local"

        def log_message(self, *words: object) -> None:
            pass

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            path = path.removeprefix("/v1.41")
            engine.asked.append(f"{self.command} {path}")
            missing = (204, None) if self.command == "DELETE" else (404, {"message": f"no such thing: {path}"})
            status, value = engine.answers.get(path, missing)
            body = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer

    server = Server(str(tmp_path / "s"), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield engine
    server.shutdown()
    server.server_close()


@pytest.fixture
def look(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """The checks by name: (status, detail, fix)."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no logins"))

    def ask(
        *images: str, others: tuple[str, ...] = (), has_gpu: bool = False, **environ: str
    ) -> dict[str, tuple[str, str, str]]:
        monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi" if has_gpu else None)
        here = {"DOCKER_HOST": f"unix://{tmp_path / 's'}", **environ}
        found = docker_check.look(Settings(home=tmp_path / "home"), images or (OURS,), here, others)
        return {name: (status, detail, fix) for name, status, detail, fix in found}

    return ask


def test_a_working_engine_is_fine_in_every_part_and_nothing_is_started(engine: Engine, look: Look) -> None:
    found = look()
    assert {status for status, _, _ in found.values()} == {"ok"}, found
    assert set(found) == {"docker", "docker files", "docker gpus", "docker image", "docker login", "docker disk"}
    assert "20.10.24" in found["docker"][1]
    assert not [asked for asked in engine.asked if asked.endswith("/start")]
    assert [asked for asked in engine.asked if asked.startswith("DELETE /containers/m2f-doctor-probe")]


@pytest.mark.parametrize(("host", "words"), [("tcp://192.0.2.1:2376", "over tcp"), ("ssh://me:word@far", "over ssh")])
def test_a_daemon_on_another_machine_is_not_asked_at_all(engine: Engine, look: Look, host: str, words: str) -> None:
    found = look(DOCKER_HOST=host)
    assert set(found) == {"docker"}
    status, detail, fix = found["docker"]
    assert (status, words in detail, bool(fix)) == ("error", True, True)
    assert "word" not in detail
    assert engine.asked == []


def test_no_daemon_is_one_error_with_its_fix(look: Look, tmp_path: Path) -> None:
    found = look(DOCKER_HOST=f"unix://{tmp_path / 'nobody'}")
    assert set(found) == {"docker"}
    assert found["docker"][0] == "error"
    assert "Start Docker" in found["docker"][2]


@pytest.mark.parametrize(
    ("version", "info", "words"),
    [
        ({"Components": [{"Name": "Podman Engine"}]}, {}, "podman"),
        ({}, {"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}, "rootless"),
        ({}, {"SecurityOptions": ["name=userns"]}, "userns"),
        ({}, {"OSType": "windows"}, "windows containers"),
    ],
)
def test_daemons_that_cannot_run_our_containers_are_refused_with_the_reason(
    engine: Engine, look: Look, version: dict[str, Any], info: dict[str, Any], words: str
) -> None:
    engine.healthy(**info)
    engine.answers["/version"] = (200, {**engine.answers["/version"][1], **version})
    found = look()
    assert set(found) == {"docker"}
    assert found["docker"][0] == "error"
    assert words in found["docker"][1]
    assert found["docker"][2]


def test_a_daemon_that_does_not_see_this_file_system_is_found_out(engine: Engine, look: Look, tmp_path: Path) -> None:
    said = f'invalid mount config for type "bind": bind source path does not exist: {tmp_path}/home/.probe-1'
    engine.answers["/containers/create"] = (400, {"message": said})
    status, detail, fix = look()["docker files"]
    assert status == "error"
    assert "does not see the files of this machine" in detail
    assert fix
    assert not list((tmp_path / "home").iterdir())


def test_a_missing_nvidia_runtime_is_an_error_only_where_there_is_a_gpu(engine: Engine, look: Look) -> None:
    engine.healthy(Runtimes={"runc": {}})
    assert look()["docker gpus"][0] == "warning"
    status, _, fix = look(has_gpu=True)["docker gpus"]
    assert status == "error"
    assert "NVIDIA Container Toolkit" in fix


def test_an_image_that_is_neither_here_nor_offered_is_an_error(engine: Engine, look: Look) -> None:
    del engine.answers[f"/images/{OURS}/json"]
    assert "scripts/build-image" in look()["docker image"][2]
    status, detail, _ = look(NVIDIAS)["docker image"]
    assert (status, "could not be pulled" in detail) == ("error", True)
    engine.answers[f"/distribution/{NVIDIAS}/json"] = (401, {"message": "unauthorized: authentication required"})
    assert "Set NGC_API_KEY" in look(NVIDIAS)["docker image"][2]
    engine.answers[f"/distribution/{NVIDIAS}/json"] = (200, {"Descriptor": {"digest": "sha256:0"}})
    status, detail, _ = look(NVIDIAS)["docker image"]
    assert (status, "nvcr.io offers it" in detail) == ("ok", True)


def test_logins_are_told_by_name_only(look: Look) -> None:
    status, _, fix = look(NVIDIAS)["docker login"]
    assert (status, "NGC_API_KEY" in fix) == ("warning", True)
    found = look(NVIDIAS, NGC_KEY=KEY)
    assert found["docker login"][:2] == ("ok", "set for nvcr.io (by NGC_KEY)")
    assert KEY not in str(found)


def test_what_only_taos_runtime_would_need_is_told_and_no_registry_is_asked(engine: Engine, look: Look) -> None:
    found = look(others=(NVIDIAS,))
    status, detail, _ = found["docker image"]
    assert (status, "the first job with runtime=tao would pull it" in detail) == ("ok", True)
    assert found["docker login"][:2] == ("ok", "none set, and none needed but for runtime=tao (nvcr.io: NGC_API_KEY)")
    assert not [asked for asked in engine.asked if "/distribution/" in asked]


def test_live_restore_that_is_off_is_a_warning(engine: Engine, look: Look) -> None:
    engine.healthy(LiveRestoreEnabled=False)
    status, _, fix = look()["docker"]
    assert (status, "live-restore" in fix) == ("warning", True)
