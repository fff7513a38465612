"""What `doctor platform=docker` looks at: the daemon, its GPUs, the image, the disk."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from mask2former_mcp.platforms.docker_daemon import Daemon, Refused, Unreachable
from mask2former_mcp.settings import Settings

_GB = 1e9
_LEAST_FREE_GB = 5.0
Found = tuple[str, Literal["ok", "warning", "error"], str, str]  # name, status, detail, fix


def look(settings: Settings, environ: Mapping[str, str] = os.environ) -> Iterator[Found]:
    """Each check as (name, status, detail, fix). Without a daemon there is only the first."""
    daemon = Daemon(environ.get("DOCKER_HOST"))
    if not daemon.is_local():
        yield (
            "docker", "error", "DOCKER_HOST names a daemon on another machine, which does not see this one's files",
            "Unset DOCKER_HOST, or run the server where that daemon runs.",
        )  # fmt: skip
        return
    try:
        info = daemon.info()
        has_image = daemon.has_image(settings.engine_image)
    except Unreachable as error:
        yield "docker", "error", f"no daemon answers: {error}", "Start Docker, or give this user access to its socket."
        return
    except Refused as error:
        yield "docker", "error", f"the daemon refuses: {error}", "Give this user access to Docker's socket."
        return
    yield _daemon(info)
    yield _gpus(info)
    if has_image:
        yield "docker image", "ok", settings.engine_image, ""
    else:
        yield (
            "docker image", "error", f"{settings.engine_image} is not on this Docker Engine",
            "Build it: scripts/build-image; or set engine_image in config.toml.",
        )  # fmt: skip
    yield _disk(Path(info.get("DockerRootDir") or "/"))


def _daemon(info: Mapping[str, Any]) -> Found:
    detail = f"Docker Engine {info.get('ServerVersion')}, API reachable, storage {info.get('Driver')}"
    if not info.get("LiveRestoreEnabled"):
        return (
            "docker", "warning", f"{detail}; live-restore is off: a restart of the daemon ends running jobs",
            'Set "live-restore": true in daemon.json.',
        )  # fmt: skip
    return "docker", "ok", detail, ""


def _gpus(info: Mapping[str, Any]) -> Found:
    if "nvidia" in (info.get("Runtimes") or {}):
        return "docker gpus", "ok", "the NVIDIA runtime is there", ""
    return (
        "docker gpus", "warning", "no NVIDIA runtime: containers compute on the CPU",
        "On a machine with a GPU, install the NVIDIA Container Toolkit.",
    )  # fmt: skip


def _disk(root: Path) -> Found:
    there = next(path for path in (root, *root.parents) if os.access(path, os.X_OK) and path.exists())
    free = shutil.disk_usage(there).free / _GB
    if free < _LEAST_FREE_GB:
        return "docker disk", "warning", f"only {free:.1f} GB free for images", "Remove images that nobody needs."
    return "docker disk", "ok", f"{free:.0f} GB free for images", ""
