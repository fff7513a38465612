"""Bringing an image to the Docker Engine: with progress, with the registry's login, and its refusals told apart."""

import queue
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mask2former_mcp.errors import ImageNotAvailable
from mask2former_mcp.platforms.docker_daemon import Daemon, Gone, Login, Refused, Unreachable, patiently
from mask2former_mcp.platforms.protocol import Report

NGC = "nvcr.io"
NGC_USER = "$oauthtoken"  # a word of NVIDIA's: the key alone says who it is
NGC_VARIABLES = ("NGC_API_KEY", "NGC_KEY")
_TRIES = 3  # a daemon that restarts in the middle keeps the layers that had arrived
_PATIENCE_S = 60.0
_BEAT_S = 1.0
_MAX_WORDS = 300


def registry(image: str) -> str:
    """The host that an image's name means; `docker.io` where it names none."""
    first, slash, _ = image.partition("/")
    return first if slash and (first == "localhost" or "." in first or ":" in first) else "docker.io"


def is_built_here(image: str) -> bool:
    """A bare name without a folder or host is a local build: on Docker Hub such names are Docker's own."""
    return "/" not in image


def key_variable(environ: Mapping[str, str]) -> str | None:
    """The name of the variable that holds an NGC key."""
    return next((name for name in NGC_VARIABLES if environ.get(name)), None)


def logins(environ: Mapping[str, str]) -> dict[str, Login]:
    """Registry -> login. The NGC key goes to NVIDIA's registry only; others use Docker's own configuration."""
    name = key_variable(environ)
    return {NGC: Login(NGC_USER, environ[name])} if name is not None else {}


def bring(daemon: Daemon, image: str, known: Mapping[str, Login], report: Report) -> None:
    """The image is on the daemon when this returns; at once when it was.

    ImageNotAvailable says what the registry or the disk refused; PlatformAway that the daemon did not come back.
    """
    login = known.get(registry(image))
    try:
        _bring(daemon, image, login, report)
    except (Refused, Gone) as error:
        raise refused(image, str(error), has_login=login is not None) from error


def _bring(daemon: Daemon, image: str, login: Login | None, report: Report) -> None:
    for attempt in range(_TRIES):
        if patiently(lambda: daemon.has_image(image), _PATIENCE_S, report):
            return
        if is_built_here(image):
            raise ImageNotAvailable(
                f"the image {image} is not on this Docker Engine",
                fix="Build it with scripts/build-image, or name another in `engine_image`; then resume_job.",
                details={"reason": "not_built"},
            )
        try:
            _pull(daemon, image, login, report)
        except Unreachable as error:
            if attempt == _TRIES - 1:
                raise refused(image, f"the transfer broke {_TRIES} times: {error}", has_login=True) from error
    if not patiently(lambda: daemon.has_image(image), _PATIENCE_S, report):
        raise refused(image, "the daemon ended each pull without the image", has_login=True)


class Layers:
    """How much of an image has come, from what the daemon says of its layers. Never goes back."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}  # of layers whose size is known
        self._part: dict[str, float] = {}  # 0..1: half of it downloading, half extracting
        self.fraction = 0.0

    def note(self, event: Mapping[str, Any]) -> None:
        layer, status = str(event.get("id", "")), str(event.get("status", ""))
        if status == "Already exists":
            self._part.pop(layer, None)
            return
        known = _STATUS.get(status)
        if known is None:
            return
        detail = event.get("progressDetail") or {}
        done, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
        if status == "Downloading" and total > 0:
            self._bytes[layer] = total
        start, span = known
        self._part[layer] = start + span * (min(done / total, 1.0) if total > 0 else 0.0)
        guess = sum(self._bytes.values()) / len(self._bytes) if self._bytes else 1.0
        sizes = {name: self._bytes.get(name, guess) for name in self._part}
        whole = sum(sizes.values())
        if whole > 0:
            self.fraction = max(self.fraction, sum(sizes[name] * part for name, part in self._part.items()) / whole)


_STATUS: Mapping[str, tuple[float, float]] = {
    "Pulling fs layer": (0.0, 0.0),
    "Waiting": (0.0, 0.0),
    "Downloading": (0.0, 0.5),
    "Verifying Checksum": (0.5, 0.0),
    "Download complete": (0.5, 0.0),
    "Extracting": (0.5, 0.5),
    "Pull complete": (1.0, 0.0),
}


def _pull(daemon: Daemon, image: str, login: Login | None, report: Report) -> None:
    layers, what = Layers(), f"pulling image {image}"
    report(what, 0.0)
    for event in _heard(daemon.pull(image, login)):
        if event is not None and event.get("error"):
            raise Refused(str(event["error"]))
        if event is not None:
            layers.note(event)
        report(what, layers.fraction)


def _heard(events: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any] | None]:
    """The events as they come, and None after each second of silence, so that a caller who wants to stop is heard.

    Stopped, the reading thread ends with this process, and the daemon gives up a pull whose client has gone.
    """
    heard: queue.Queue[Mapping[str, Any] | BaseException | None] = queue.Queue()

    def read() -> None:
        try:
            for event in events:
                heard.put(event)
            heard.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked
            heard.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            event = heard.get(timeout=_BEAT_S)
        except queue.Empty:
            yield None
            continue
        if event is None:
            return
        if isinstance(event, BaseException):
            raise event
        yield event


# -- refusals --


@dataclass(frozen=True, slots=True)
class _Rule:
    reason: str
    pattern: re.Pattern[str]
    words: str
    advice: str


def _rule(reason: str, pattern: str, words: str, advice: str) -> _Rule:
    return _Rule(reason, re.compile(pattern, re.IGNORECASE), words, advice)


_RULES = (
    _rule("disk_full", r"no space left on device|disk quota exceeded", "the daemon's disk is full",
          "Remove images and containers that nobody needs (`docker system df` shows them)."),
    _rule("rate_limited", r"toomanyrequests|rate limit", "the registry limits how often this address may pull",
          "Wait, or log in to the registry with `docker login`."),
    _rule("other_architecture", r"no matching manifest", "the image is not made for this machine's processor",
          "Name an image for this architecture."),
    _rule("unauthorized", r"unauthori[sz]ed|authentication required|denied|forbidden|\b40[13]\b|no basic auth",
          "the registry refuses it, or does not have it", ""),
    _rule("unknown_image", r"manifest unknown|manifest for .* not found|name unknown|repository name not known"
          r"|invalid reference|\bnot found\b", "the registry has no such image", "Correct the image's name and tag."),
    _rule("untrusted_registry", r"x509|certificate|HTTP response to HTTPS client",
          "the daemon does not trust the registry's certificate",
          "Give the registry's CA to Docker (/etc/docker/certs.d), or name another registry."),
    _rule("no_network", r"no such host|dial tcp|timeout|timed out|deadline exceeded|connection re(fused|set)"
          r"|unreachable|proxyconnect|server misbehaving|\bEOF\b|transfer broke|\b50[234]\b",
          "the registry cannot be reached",
          "Check the daemon's network and proxy; or `docker save` the image where there is a network and"
          " `docker load` it here."),
)  # fmt: skip


def refused(image: str, said: str, *, has_login: bool) -> ImageNotAvailable:
    """The daemon's words as an error that says which kind it is and what to do; `details.reason` names the kind."""
    words = " ".join(said.split())[:_MAX_WORDS]
    rule = next((rule for rule in _RULES if rule.pattern.search(words)), None)
    if rule is None:
        return ImageNotAvailable(
            f"the image {image} could not be pulled: {words}",
            fix=f"`docker pull {image}` on this machine says more; then resume_job.",
            details={"reason": "pull_failed"},
        )
    advice = _login_advice(image, has_login) if rule.reason == "unauthorized" else rule.advice
    return ImageNotAvailable(
        f"the image {image} could not be pulled, {rule.words}: {words}",
        fix=f"{advice} Then resume_job.",
        details={"reason": rule.reason},
    )


def _login_advice(image: str, has_login: bool) -> str:
    host = registry(image)
    if host == NGC and has_login:
        return "The key of NGC_API_KEY has no access to it: check the key, the image's name and your organisation."
    if host == NGC:
        return "Set NGC_API_KEY in the environment of the server (an API key of ngc.nvidia.com)."
    return f"Check the image's name, and log in: `docker login {host}` as the user who runs the server."
