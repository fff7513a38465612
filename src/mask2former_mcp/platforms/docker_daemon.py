"""The few questions that we ask a Docker Engine, through the docker SDK, with four kinds of refusal told apart."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from docker.errors import APIError, DockerException, NotFound

import docker

_TIMEOUT_S = 30


class Unreachable(Exception):
    """No daemon, or it went away in the middle: ask again later."""


class Gone(Exception):
    """There is no such container or image."""


class Conflict(Exception):
    """The name is taken."""


class Refused(Exception):
    """The daemon says no, and says why."""


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
        with self._asking() as client:
            found: dict[str, Any] = client.inspect_container(name)
            return found

    def stop(self, name: str, grace_s: float) -> None:
        """Nothing where it has ended already."""
        with self._asking(_TIMEOUT_S + grace_s) as client:
            client.stop(name, timeout=max(round(grace_s), 1))

    def remove(self, name: str) -> None:
        """Nothing where it is gone already."""
        try:
            with self._asking() as client:
                client.remove_container(name, force=True, v=True)
        except Gone:
            return

    def log(self, name: str, *, since: str = "") -> Iterator[bytes]:
        """Lines with the daemon's RFC 3339 time in front; those from the second of `since` on are enough."""
        with self._asking() as client:
            text = client.logs(name, timestamps=True, since=_second(since))
        return iter(text.splitlines(keepends=True))

    def has_image(self, image: str) -> bool:
        try:
            with self._asking() as client:
                client.inspect_image(image)  # type: ignore[no-untyped-call] # no stub
        except Gone:
            return False
        return True

    def info(self) -> dict[str, Any]:
        with self._asking() as client:
            found: dict[str, Any] = client.info()
            return found

    def is_local(self) -> bool:
        """Whether the daemon sees this machine's files, as far as its address tells."""
        return self.host is None or urlsplit(self.host).scheme in ("unix", "npipe", "")

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
        except (DockerException, requests.exceptions.RequestException) as error:
            self._client = None
            raise Unreachable(" ".join(str(error).split())[:300]) from error


def _second(stamp: str) -> datetime | None:
    """The daemon's time without its nanoseconds; the SDK reads a naive time as UTC."""
    return datetime.fromisoformat(stamp.split(".")[0].rstrip("Z")) if stamp else None


def _said(error: APIError) -> str:
    return str(error.explanation or error)
