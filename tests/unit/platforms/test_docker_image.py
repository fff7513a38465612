"""Pulling an image against a daemon on a socket that answers as Docker Engine does: progress, login, refusals."""

import base64
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from mask2former_mcp.errors import ImageNotAvailable, PlatformAway
from mask2former_mcp.platforms import docker_image
from mask2former_mcp.platforms.docker_daemon import Daemon
from mask2former_mcp.platforms.docker_image import Layers, bring, logins, registry

IMAGE = "nvcr.io/nvidia/tao/tao-toolkit:7.0.1-pyt"
KEY = "nvapi-a-secret"


@dataclass
class Engine:
    """What the fake daemon answers and what it was asked."""

    images: set[str] = field(default_factory=set)
    events: list[dict[str, Any]] = field(default_factory=list)
    refuses: tuple[int, str] | None = None  # before the stream begins
    breaks: int = 0  # streams that end in the middle
    asked: list[dict[str, Any]] = field(default_factory=list)


def handler(engine: Engine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address_string(self) -> str:
            return "local"

        def log_message(self, *words: object) -> None:
            pass

        def answer(self, value: Any, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.endswith("/version"):
                self.answer({"ApiVersion": "1.41", "Version": "20.10"})
            elif any(path.endswith(f"/images/{image}/json") for image in engine.images):
                self.answer({"Id": "sha256:0"})
            else:
                self.answer({"message": "No such image"}, 404)

        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            assert parts.path.endswith("/images/create")
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            header = self.headers.get("X-Registry-Auth")
            engine.asked.append({**query, "login": json.loads(base64.urlsafe_b64decode(header)) if header else None})
            if engine.refuses is not None:
                self.answer({"message": engine.refuses[1]}, engine.refuses[0])
                return
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in engine.events:
                line = json.dumps(event).encode() + b"\r\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            if engine.breaks:
                engine.breaks -= 1
                self.close_connection = True
                return
            self.wfile.write(b"0\r\n\r\n")
            if not any("error" in event for event in engine.events):
                engine.images.add(f"{query['fromImage']}:{query['tag']}")

    return Handler


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def engine() -> Engine:
    return Engine(events=layers(4))


@pytest.fixture
def daemon(engine: Engine, tmp_path: Path) -> Iterator[Daemon]:
    server = Server(str(tmp_path / "s"), handler(engine))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield Daemon(f"unix://{tmp_path / 's'}")
    server.shutdown()
    server.server_close()


def layers(count: int, size: int = 1000) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"status": "Pulling from nvidia/tao", "id": "7.0.1-pyt"}]
    names = [f"layer{number}" for number in range(count)]
    events += [{"status": "Pulling fs layer", "progressDetail": {}, "id": name} for name in names]
    for status, after in (("Downloading", "Download complete"), ("Extracting", "Pull complete")):
        for name in names:
            parts = [{"current": size * part // 4, "total": size} for part in (1, 2, 4)]
            events += [{"status": status, "progressDetail": part, "id": name} for part in parts]
            events.append({"status": after, "progressDetail": {}, "id": name})
    return [*events, {"status": "Digest: sha256:0"}, {"status": f"Status: Downloaded newer image for {IMAGE}"}]


def told() -> tuple[list[tuple[str, float]], Callable[[str, float], None]]:
    heard: list[tuple[str, float]] = []
    return heard, lambda what, done: heard.append((what, done))


def test_a_pull_tells_how_far_it_is_and_never_goes_back(engine: Engine, daemon: Daemon) -> None:
    heard, report = told()
    bring(daemon, IMAGE, {}, report)
    parts = [done for _, done in heard]
    assert {what for what, _ in heard} == {f"pulling image {IMAGE}"}
    assert parts == sorted(parts)
    assert len({round(part, 2) for part in parts}) > 10
    assert (parts[0], parts[-1]) == (0.0, 1.0)
    assert engine.asked[0] == {"fromImage": "nvcr.io/nvidia/tao/tao-toolkit", "tag": "7.0.1-pyt", "login": None}


def test_an_image_that_is_here_is_not_asked_for(engine: Engine, daemon: Daemon) -> None:
    engine.images.add(IMAGE)
    bring(daemon, IMAGE, {}, told()[1])
    assert engine.asked == []


def test_a_bare_name_is_never_asked_of_a_public_registry(engine: Engine, daemon: Daemon) -> None:
    with pytest.raises(ImageNotAvailable, match="not on this Docker Engine") as raised:
        bring(daemon, "mask2former-engine:latest", {}, told()[1])
    assert "scripts/build-image" in raised.value.fix
    assert engine.asked == []


def test_the_ngc_key_goes_to_nvidias_registry_in_a_header_and_to_no_other(engine: Engine, daemon: Daemon) -> None:
    known = logins({"NGC_API_KEY": KEY})
    assert KEY not in repr(known)
    bring(daemon, IMAGE, known, told()[1])
    bring(daemon, "ghcr.io/somebody/image:1", known, told()[1])
    assert [asked["login"] for asked in engine.asked] == [{"username": "$oauthtoken", "password": KEY}, None]
    assert all(KEY not in str({**asked, "login": None}) for asked in engine.asked)


@pytest.mark.parametrize(
    ("environ", "found"),
    [({"NGC_KEY": "b"}, "b"), ({"NGC_API_KEY": "a", "NGC_KEY": "b"}, "a"), ({"NGC_API_KEY": ""}, None), ({}, None)],
)
def test_the_key_is_found_by_either_name(environ: dict[str, str], found: str | None) -> None:
    login = logins(environ).get("nvcr.io")
    assert (login.password if login else None) == found


@pytest.mark.parametrize(
    ("image", "host"),
    [(IMAGE, "nvcr.io"), ("acme/m2f:1", "docker.io"), ("localhost/m2f", "localhost"), ("reg:5000/a/b", "reg:5000"),
     ("m2f:1", "docker.io")],
)  # fmt: skip
def test_the_registry_is_read_from_the_name(image: str, host: str) -> None:
    assert registry(image) == host


REFUSALS = [
    ("manifest for nvcr.io/x:9 not found: manifest unknown: manifest unknown", "unknown_image", "name and tag"),
    ("pull access denied for acme/m2f, repository does not exist or may require 'docker login': denied: requested "
     "access to the resource is denied", "unauthorized", "NGC_API_KEY"),
    ('Get "https://nvcr.io/v2/": unauthorized: authentication required', "unauthorized", "NGC_API_KEY"),
    ('Get "https://nvcr.io/v2/": dial tcp: lookup nvcr.io on 127.0.0.1:53: no such host', "no_network", "docker save"),
    ('Get "https://nvcr.io/v2/": net/http: request canceled (Client.Timeout exceeded while awaiting headers)',
     "no_network", "proxy"),
    ("dial tcp 192.0.2.1:443: connect: connection refused", "no_network", "network"),
    ('Get "https://nvcr.io/v2/": x509: certificate signed by unknown authority', "untrusted_registry", "CA"),
    ("failed to register layer: write /opt/lib.so: no space left on device", "disk_full", "Remove images"),
    ("toomanyrequests: You have reached your unauthenticated pull rate limit", "rate_limited", "Wait"),
    ("no matching manifest for linux/arm64 in the manifest list entries", "other_architecture", "architecture"),
    ("something that nobody has met", "pull_failed", "docker pull"),
]  # fmt: skip


@pytest.mark.parametrize("in_stream", [True, False])
@pytest.mark.parametrize(("said", "reason", "advice"), REFUSALS)
def test_refusals_are_told_apart_each_with_advice(
    engine: Engine, daemon: Daemon, said: str, reason: str, advice: str, in_stream: bool
) -> None:
    if in_stream:
        engine.events = [*engine.events[:5], {"errorDetail": {"message": said}, "error": said}]
    else:
        engine.refuses = (404 if reason == "unknown_image" else 500, said)
    with pytest.raises(ImageNotAvailable) as raised:
        bring(daemon, IMAGE, {}, told()[1])
    error = raised.value
    assert (error.code, error.details["reason"]) == ("image_not_available", reason)
    assert IMAGE in error.message
    assert advice in error.fix
    assert len(engine.asked) == 1


def test_a_refused_key_is_not_advised_to_be_set(engine: Engine, daemon: Daemon) -> None:
    engine.refuses = (500, "unauthorized: authentication required")
    with pytest.raises(ImageNotAvailable, match="refuses it") as raised:
        bring(daemon, IMAGE, logins({"NGC_KEY": KEY}), told()[1])
    assert "Set NGC_API_KEY" not in raised.value.fix
    assert KEY not in f"{raised.value} {raised.value.fix} {raised.value.details}"


def test_a_pull_that_breaks_is_begun_again(engine: Engine, daemon: Daemon) -> None:
    engine.breaks = 2
    bring(daemon, IMAGE, {}, told()[1])
    assert len(engine.asked) == 3


def test_a_pull_that_breaks_for_ever_says_so(engine: Engine, daemon: Daemon) -> None:
    engine.breaks = 9
    with pytest.raises(ImageNotAvailable, match="broke 3 times") as raised:
        bring(daemon, IMAGE, {}, told()[1])
    assert raised.value.details["reason"] == "no_network"


def test_whoever_reports_may_stop_it(engine: Engine, daemon: Daemon) -> None:
    class Stop(Exception):
        pass

    def report(what: str, done: float) -> None:
        if done > 0.2:
            raise Stop

    with pytest.raises(Stop):
        bring(daemon, IMAGE, {}, report)


def test_a_daemon_that_is_not_there_is_no_refusal_of_a_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_image, "_PATIENCE_S", 0.0)
    with pytest.raises(PlatformAway, match="does not answer") as raised:
        bring(Daemon(f"unix://{tmp_path / 'nobody'}"), IMAGE, {}, told()[1])
    assert raised.value.code == "platform_away"


def test_layers_that_are_here_already_count_for_nothing() -> None:
    seen = Layers()
    for layer in "ab":
        seen.note({"status": "Pulling fs layer", "id": layer, "progressDetail": {}})
    seen.note({"status": "Already exists", "id": "a"})
    seen.note({"status": "Downloading", "id": "b", "progressDetail": {"current": 50, "total": 100}})
    assert seen.fraction == 0.25
    seen.note({"status": "Pull complete", "id": "b"})
    assert seen.fraction == 1.0
