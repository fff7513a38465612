"""What `doctor platform=docker` looks at: the daemon, the files it sees, its GPUs, the images, logins, the disk."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mask2former_mcp.platforms import docker_fitness as fitness
from mask2former_mcp.platforms.docker_daemon import Daemon, Gone, Refused, Unreachable, has_login
from mask2former_mcp.platforms.docker_image import NGC, is_built_here, key_variable, logins, refused, registry
from mask2former_mcp.settings import Settings

_GB = 1e9
_LEAST_FREE_GB = 5.0
_PROBE = "m2f-doctor-probe"
Found = tuple[str, Literal["ok", "warning", "error"], str, str]  # name, status, detail, fix


def look(
    settings: Settings, images: Sequence[str], environ: Mapping[str, str], others: Sequence[str] = ()
) -> Iterator[Found]:
    """Each check as (name, status, detail, fix). Without a daemon there is only the first; nothing is started or
    pulled. `images` are those that jobs would run; `others`, of which no registry is asked, those of runtime=tao where
    it is not the operator's."""
    daemon = Daemon(environ.get("DOCKER_HOST"))
    if reason := fitness.remote(daemon.host):
        yield ("docker", "error", *reason)
        return
    try:
        info, version = daemon.info(), daemon.version()
        here = {image: daemon.has_image(image) for image in (*images, *others)}
    except (Unreachable, Refused) as error:
        yield ("docker", "error", *_silent(error))
        return
    if reason := fitness.unfit(info, version):
        yield ("docker", "error", *reason)
        return
    yield _daemon(info)
    if present := next((image for image, there in here.items() if there), None):
        yield _files(daemon, settings.home, present)
    yield _gpus(info, shutil.which("nvidia-smi") is not None and settings.gpus != "none")
    for image, there in here.items():
        if there:
            yield "docker image", "ok", f"{image} is here", ""
        elif image in images:
            yield _offered(daemon, image, environ)
        else:
            yield "docker image", "ok", f"{image} is not here: the first job with runtime=tao would pull it", ""
    yield _login(images, others, environ)
    yield _disk(Path(info.get("DockerRootDir") or "/"))


def unusable(environ: Mapping[str, str]) -> fitness.Reason | None:
    """Why no job can run in containers now: (what is wrong, what to do)."""
    daemon = Daemon(environ.get("DOCKER_HOST"))
    if reason := fitness.remote(daemon.host):
        return reason
    try:
        return fitness.unfit(daemon.info(), daemon.version())
    except (Unreachable, Refused) as error:
        return _silent(error)


def _silent(error: Unreachable | Refused) -> fitness.Reason:
    if isinstance(error, Unreachable):
        return f"no daemon answers: {error}", "Start Docker, or give this user access to its socket."
    return f"the daemon refuses: {error}", "Give this user access to Docker's socket."


def _daemon(info: Mapping[str, Any]) -> Found:
    detail = f"Docker Engine {info.get('ServerVersion')}, API reachable, storage {info.get('Driver')}"
    if not info.get("LiveRestoreEnabled"):
        return (
            "docker", "warning",
            f"{detail}; live-restore is off: a restart of the daemon ends running containers, and trainings go on from"
            " their last checkpoint",
            'Set "live-restore": true in daemon.json.',
        )  # fmt: skip
    return "docker", "ok", detail, ""


def _files(daemon: Daemon, home: Path, image: str) -> Found:
    """Creates a container with a mount of a folder that was made just now, and removes it without a start."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".probe-") as folder:
        name = f"{_PROBE}-{os.path.basename(folder)[7:]}"
        mount = {"Type": "bind", "Source": folder, "Target": "/probe", "ReadOnly": True}
        host = {"Mounts": [mount], "NetworkMode": "none", "CapDrop": ["ALL"]}
        try:
            daemon.create(name, {"Image": image, "Cmd": ["none"], "HostConfig": host})
            daemon.remove(name)
        except (Refused, Gone) as error:
            reason = fitness.unseen(str(error)) or (f"a mount of {home} is refused: {error}", "Move M2F_HOME.")
            return ("docker files", "error", *reason)
        except Unreachable as error:
            return "docker files", "warning", f"the daemon went away: {error}", "Look again in a moment."
    return "docker files", "ok", f"the daemon sees {home}", ""


def _gpus(info: Mapping[str, Any], has_gpu: bool) -> Found:
    if "nvidia" in (info.get("Runtimes") or {}):
        return "docker gpus", "ok", "the NVIDIA runtime is there", ""
    if has_gpu:
        return (
            "docker gpus", "error", "this machine has a GPU, but Docker has no NVIDIA runtime: no job could use it",
            fitness.TOOLKIT,
        )  # fmt: skip
    return (
        "docker gpus", "warning", "no NVIDIA runtime: containers compute on the CPU",
        "On a machine with a GPU, install the NVIDIA Container Toolkit.",
    )  # fmt: skip


def _offered(daemon: Daemon, image: str, environ: Mapping[str, str]) -> Found:
    if is_built_here(image):
        return (
            "docker image", "error", f"{image} is not on this Docker Engine",
            "Build it: scripts/build-image; or set engine_image in config.toml.",
        )  # fmt: skip
    login = logins(environ).get(registry(image))
    try:
        daemon.offered(image, login)
    except (Refused, Gone, Unreachable) as error:
        why = refused(image, str(error), has_login=login is not None)
        return "docker image", "error", why.message, why.fix.removesuffix(" Then resume_job.")
    return "docker image", "ok", f"{image} is not here; {registry(image)} offers it, and the first job pulls it", ""


def _login(images: Sequence[str], others: Sequence[str], environ: Mapping[str, str]) -> Found:
    """Names only: of registries, and of the variable."""
    variable = key_variable(environ)
    found = [f"{NGC} (by {variable})"] if variable else []
    for host in sorted({registry(image) for image in (*images, *others)} - ({NGC} if variable else set())):
        if has_login(host):
            found.append(f"{host} (by Docker's configuration)")
    if found:
        return "docker login", "ok", f"set for {', '.join(found)}", ""
    if any(registry(image) == NGC for image in images):
        return "docker login", "warning", f"none for {NGC}", "Set NGC_API_KEY in the environment of the server."
    if any(registry(image) == NGC for image in others):
        return "docker login", "ok", f"none set, and none needed but for runtime=tao ({NGC}: NGC_API_KEY)", ""
    return "docker login", "ok", "none set, and none needed", ""


def _disk(root: Path) -> Found:
    there = next(path for path in (root, *root.parents) if os.access(path, os.X_OK) and path.exists())
    free = shutil.disk_usage(there).free / _GB
    if free < _LEAST_FREE_GB:
        return "docker disk", "warning", f"only {free:.1f} GB free for images", "Remove images that nobody needs."
    return "docker disk", "ok", f"{free:.0f} GB free for images", ""
