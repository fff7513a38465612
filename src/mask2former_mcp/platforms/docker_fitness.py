"""Whether a daemon is one that our containers can rely on. Pure: the daemon's answers in, reasons out."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Reason = tuple[str, str]  # what is wrong, what to do
_UNSEEN = "so it does not see the files of this machine"
_HERE = "Unset DOCKER_HOST, or run the server on the daemon's machine."
TOOLKIT = 'Install the NVIDIA Container Toolkit, or set `gpus = "none"` in config.toml for the CPU.'


def remote(host: str | None) -> Reason | None:
    """As far as the address tells: files, processes and GPUs of another machine are not those that were planned for."""
    scheme = urlsplit(host or "").scheme
    if scheme in ("unix", "npipe", ""):
        return None
    return f"the Docker daemon at {_without_login(str(host))} is asked over {scheme}, {_UNSEEN}", _HERE


def unfit(info: Mapping[str, Any], version: Mapping[str, Any]) -> Reason | None:
    """A daemon that would ignore what we ask for, or that gives our files to nobody."""
    if any("podman" in str(part.get("Name", "")).lower() for part in version.get("Components") or ()):
        return (
            "podman answers behind Docker's socket: it ignores device requests and limits without a word",
            "Start Docker Engine, and point DOCKER_HOST to its socket.",
        )
    kind = info.get("OSType") or "linux"
    if kind != "linux":
        return f"this Docker Engine runs {kind} containers", "Switch it to Linux containers."
    options = [str(option).split(",")[0] for option in info.get("SecurityOptions") or ()]
    if mapped := next((name for name in ("rootless", "userns") if f"name={name}" in options), None):
        return (
            f"this Docker Engine maps user ids ({mapped}), so a container cannot write results that its user owns here",
            "Use a Docker Engine without rootless mode and userns-remap.",
        )
    return None


def unseen(said: str) -> Reason | None:
    """What a create call was refused for, where that was a path that the daemon does not find."""
    if "bind source path does not exist" not in said:
        return None
    path = said.rpartition(":")[2].strip()
    return f"the Docker daemon finds no {path}, {_UNSEEN}", _HERE


def without_gpus(info: Mapping[str, Any], devices: Sequence[str]) -> Reason | None:
    if not devices or "nvidia" in (info.get("Runtimes") or {}):
        return None
    return "this Docker Engine has no NVIDIA runtime, so its containers see no GPU", TOOLKIT


def _without_login(host: str) -> str:
    return host.rpartition("@")[2] if "@" in host else host
