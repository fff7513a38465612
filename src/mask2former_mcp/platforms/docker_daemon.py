"""The few questions that we ask a Docker Engine, through the docker SDK, with four kinds of refusal told apart."""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import requests
import urllib3
from docker.errors import APIError, DockerException, NotFound, StreamParseError
from docker.utils import parse_repository_tag

import docker
from docker import auth
from mask2former_mcp.errors import PlatformAway
from mask2former_mcp.platforms.protocol import Report, silent

_TIMEOUT_S = 30
_REGISTRY_TIMEOUT_S = 15
_AGAIN_S = 1.0
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Login:
    """Of a registry. It travels in a header of the request to the daemon, and nowhere else."""

    user: str
    password: str = field(repr=False)

    @property
    def config(self) -> dict[str, str]:
        return {"username": self.user, "password": self.password}


class Unreachable(Exception):
    """No daemon, or it went away in the middle: ask again later."""


class Gone(Exception):
    """There is no such container or image."""


class Refused(Exception):
    """The daemon says no, and says why."""


class Conflict(Refused):
    """The name is taken, or the container is being removed."""


class Daemon:
    """Connects when it is first asked, and again after a failure. `host` as DOCKER_HOST has it; None: the default."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host
        self._client: docker.APIClient | None = None

    def create(self, name: str, config: Mapping[str, Any]) -> None:
        with self._asking() as client:
            client.create_container_from_config(dict(config), name=name)  # type: ignore[no-untyped-call] # no stub

    def start(self, name: str) -> None:
        with self._asking() as client:
            client.start(name)

    def inspect(self, name: str) -> dict[str, Any]:
        with self._following() as client:
            found: dict[str, Any] = client.inspect_container(name)
            return found

    def stop(self, name: str, grace_s: float) -> None:
        """Nothing where it has ended already."""
        with self._following(_TIMEOUT_S + grace_s) as client:
            client.stop(name, timeout=max(round(grace_s), 1))

    def remove(self, name: str) -> None:
        """Nothing where it is gone already."""
        try:
            with self._following() as client:
                client.remove_container(name, force=True, v=True)
        except Gone:
            return

    def log(self, name: str, *, since: str = "") -> Iterator[bytes]:
        """Lines with the daemon's RFC 3339 time in front; those from the second of `since` on are enough. Only the
        daemon ends a line: a progress bar's carriage returns are text."""
        with self._following() as client:
            text = client.logs(name, timestamps=True, since=_second(since))
        return io.BytesIO(text)

    def has_image(self, image: str) -> bool:
        try:
            with self._asking() as client:
                client.inspect_image(image)  # type: ignore[no-untyped-call] # no stub
        except Gone:
            return False
        return True

    def pull(self, image: str, login: Login | None) -> Iterator[Mapping[str, Any]]:
        """What the daemon says while it pulls. A refusal may also be an event with `error`."""
        repository, tag = parse_repository_tag(image)
        with self._asking() as client:
            yield from client.pull(
                repository, tag=tag, stream=True, decode=True, auth_config=login.config if login else None
            )

    def offered(self, image: str, login: Login | None) -> None:
        """Asks the image's registry whether it could be pulled; nothing is. Refused or Gone say why not."""
        with self._asking(_REGISTRY_TIMEOUT_S) as client:
            client.inspect_distribution(image, auth_config=login.config if login else None)  # type: ignore[no-untyped-call] # no stub

    def info(self) -> dict[str, Any]:
        with self._asking() as client:
            found: dict[str, Any] = client.info()
            return found

    def version(self) -> dict[str, Any]:
        with self._asking() as client:
            found: dict[str, Any] = client.version()
            return found

    @contextmanager
    def _asking(self, timeout_s: float = _TIMEOUT_S) -> Iterator[docker.APIClient]:
        try:
            if self._client is None:
                self._client = docker.APIClient(base_url=self.host, version="auto", timeout=_TIMEOUT_S)
            self._client.timeout = round(timeout_s)
            yield self._client
        except NotFound as error:
            raise Gone(_said(error)) from error
        except APIError as error:
            if error.response is not None and error.response.status_code == 409:
                raise Conflict(_said(error)) from error
            raise Refused(_said(error)) from error
        except (
            DockerException, StreamParseError, requests.exceptions.RequestException, urllib3.exceptions.HTTPError
        ) as error:  # fmt: skip
            self._client = None
            raise Unreachable(" ".join(str(error).split())[:300]) from error

    @contextmanager
    def _following(self, timeout_s: float = _TIMEOUT_S) -> Iterator[docker.APIClient]:
        """As `_asking`, about a container that is there: a daemon in order refuses nothing of this, so one that does
        (it is short of memory or disk, a newer one has taken its place) is asked again later."""
        try:
            with self._asking(timeout_s) as client:
                yield client
        except Refused as error:
            self._client = None
            raise Unreachable(str(error)) from error


def has_login(registry: str) -> bool:
    """Whether Docker's own configuration of this user holds a login of the registry."""
    try:
        return auth.load_config().resolve_authconfig(registry) is not None
    except DockerException:  # a credential helper that is named and not there
        return False


def patiently(ask: Callable[[], _Answer], patience_s: float, report: Report = silent) -> _Answer:
    """The answer of a daemon that may be restarting. PlatformAway when it stays away."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except Unreachable as error:
            if time.monotonic() > deadline:
                raise PlatformAway(
                    f"the Docker daemon does not answer: {error}",
                    fix="Start Docker, or give this user access to its socket; `doctor platform=docker` checks it.",
                ) from error
        report("waiting for the Docker daemon", 0.0)
        time.sleep(_AGAIN_S)


def _second(stamp: str) -> datetime | None:
    """The daemon's time without its nanoseconds; the SDK reads a naive time as UTC."""
    return datetime.fromisoformat(stamp.split(".")[0].rstrip("Z")) if stamp else None


def _said(error: APIError) -> str:
    return str(error.explanation or error)
