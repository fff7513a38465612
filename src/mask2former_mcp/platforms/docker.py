"""The job as a container of a Docker Engine on this machine.

The name is made from home, job and attempt: Docker gives a name once, which is the fence. How it ended is written
beside the job before the container is removed, so a container that is gone is no riddle. The log is copied into the
job's log file whenever somebody polls, from where the last copy ended; a restart of the daemon (live-restore) only
pauses it.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mask2former_mcp.errors import NotAvailable
from mask2former_mcp.platforms.docker_daemon import Conflict, Daemon, Gone, Refused, Unreachable
from mask2former_mcp.platforms.protocol import Handle, Observation, Task

LABEL = "org.mask2former-mcp"
RESULTS = "/results"
_EXIT_FILE = "exit_status.json"
_POSITION_FILE = "log_position"
_MASK = b"***"
_PATIENCE_S = 60.0  # for a daemon that restarts
_REMOVED_WITHIN_S = 30.0
_GB = 2**30
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one container may use. `cpus` 0: all of them."""

    memory_gb: float
    cpus: float = 0.0
    pids: int = 4096
    shm_gb: float = 8.0
    network: str = "none"
    read_only_root: bool = True


class DockerPlatform:
    """Handles hold the container's name and paths relative to `home`."""

    def __init__(self, home: Path, limits: Limits, daemon: Daemon, secrets: tuple[str, ...] = ()) -> None:
        self.home = home
        self.limits = limits
        self.daemon = daemon
        self.secrets = tuple(secret.encode() for secret in secrets)

    def render(self, task: Task) -> Mapping[str, Any]:
        """The whole create call of the Engine API, as `create`, with the container's `name`."""
        home = hashlib.sha256(str(self.home).encode()).hexdigest()[:8]
        name = f"m2f-{home}-{task.job_id}-{task.attempt}"
        limits, user = self.limits, task.user or (os.getuid(), os.getgid())
        memory = int(limits.memory_gb * _GB)
        host: dict[str, Any] = {
            "AutoRemove": False,
            "CapDrop": ["ALL"],
            "Init": True,  # SIGTERM would not reach a Python that is process 1
            "IpcMode": "private",
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "64m", "max-file": "4"}},
            "Memory": memory,
            "MemorySwap": memory,
            # Not `Binds`: those make a missing source, as root, and split paths at colons.
            "Mounts": [
                {"Type": "bind", "Source": str(bind.source), "Target": bind.target, "ReadOnly": bind.read_only}
                for bind in task.binds
            ],
            "NetworkMode": limits.network,
            "PidsLimit": limits.pids,
            "Privileged": False,
            "ReadonlyRootfs": limits.read_only_root,
            "RestartPolicy": {"Name": "no"},
            "SecurityOpt": ["no-new-privileges"],
            "ShmSize": int(limits.shm_gb * _GB),
            "Tmpfs": {"/tmp": "rw,nosuid,nodev,mode=1777,size=4g"},
        }
        if limits.cpus:
            host["NanoCpus"] = int(limits.cpus * 1e9)
        if task.devices:
            request = {"Driver": "nvidia", "DeviceIDs": list(task.devices), "Capabilities": [["gpu"]]}
            host["DeviceRequests"] = [request]
        create = {
            "Image": task.image,
            "Entrypoint": [task.command[0]],
            "Cmd": list(task.command[1:]),
            "WorkingDir": RESULTS,
            "User": f"{user[0]}:{user[1]}",
            "Env": [f"{key}={value}" for key, value in sorted(task.environment.items())],
            "Labels": {
                f"{LABEL}.home": home,
                f"{LABEL}.job": task.job_id,
                f"{LABEL}.attempt": str(task.attempt),
                f"{LABEL}.plan": task.digest,
            },
            "HostConfig": host,
        }
        handle = {
            "platform": "docker",
            "container": name,
            "run": self._relative(task.job_dir / "run" / str(task.attempt)),
            "log": self._relative(task.log_file),
        }
        return {"name": name, "create": create, "handle": handle}

    def submit(self, task: Task) -> Handle:
        order = self.render(task)
        handle: Handle = order["handle"]
        run = self.home / handle["run"]
        run.mkdir(parents=True, exist_ok=True)
        if (run / _EXIT_FILE).exists():
            return handle
        if not self.daemon.is_local():
            raise NotAvailable(
                f"the Docker daemon at {self.daemon.host} does not see the files of this machine",
                fix="Unset DOCKER_HOST, or run the server on the daemon's machine.",
            )
        self._check_image(str(task.image))
        self._check_gpus(task)
        try:
            self.daemon.create(order["name"], order["create"])
        except Conflict:
            pass  # an earlier start, perhaps cut off between create and start
        except (Refused, Gone) as error:
            raise NotAvailable(f"Docker refused the container: {error}", fix="See `doctor platform=docker`.") from error
        except Unreachable as error:
            raise _no_daemon(error) from error
        try:
            if self.daemon.inspect(order["name"])["State"]["Status"] == "created":
                self.daemon.start(order["name"])
        except (Refused, Gone) as error:
            self.daemon.remove(order["name"])
            raise NotAvailable(f"the container could not be started: {error}", fix=_start_advice(str(error))) from error
        except Unreachable as error:
            raise _no_daemon(error) from error
        return handle

    def poll(self, handle: Handle) -> Observation:
        if (ended := _read(self.home / handle["run"] / _EXIT_FILE)) is not None:
            return Observation("exited", exit_code=ended["code"], out_of_memory=ended["out_of_memory"])
        try:
            state = self.daemon.inspect(handle["container"])["State"]
            if state["Status"] == "created":
                # Created and not yet started: for whoever submits it is still to do.
                return Observation("missing", detail="its container was never started")
            self._copy_log(handle)
        except Gone:
            return Observation("missing", detail="its container is gone and nobody recorded an exit code")
        except Unreachable as error:
            return Observation("running", detail=f"waiting for the Docker daemon: {error}")
        if state["Status"] in ("running", "paused", "restarting", "removing"):
            return Observation("running")
        return Observation("exited", exit_code=int(state["ExitCode"]), out_of_memory=bool(state["OOMKilled"]))

    def cancel(self, handle: Handle, *, grace_s: float) -> None:
        """SIGTERM, after `grace_s` SIGKILL; then the end is recorded, the log complete and the container removed."""
        run = self.home / handle["run"]
        name = handle["container"]
        try:
            state = self._patiently(lambda: self.daemon.inspect(name))["State"]
        except Gone:
            return
        if state["Status"] == "created":
            self._patiently(lambda: self.daemon.remove(name))
            return
        try:
            self._patiently(lambda: self.daemon.stop(name, grace_s))
            state = self._patiently(lambda: self.daemon.inspect(name))["State"]
            self._patiently(lambda: self._copy_log(handle))
            _write(run / _EXIT_FILE, {"code": int(state["ExitCode"]), "out_of_memory": bool(state["OOMKilled"])})
            self._patiently(lambda: self.daemon.remove(name))
        except Gone:
            return  # somebody else removed it

    def logs(self, handle: Handle) -> Iterator[str]:
        if not (self.home / handle["run"] / _EXIT_FILE).exists():
            with contextlib.suppress(Gone, Unreachable):
                self._copy_log(handle)
        try:
            with (self.home / handle["log"]).open(encoding="utf-8", errors="replace") as stream:
                yield from stream
        except FileNotFoundError:
            return

    # -- inside --

    def _copy_log(self, handle: Handle) -> None:
        """Append what the container wrote since the last copy; lines carry the daemon's nanoseconds, which say where
        that was. Killed between the two writes, the next copy repeats a line rather than losing one."""
        position = self.home / handle["run"] / _POSITION_FILE
        last = position.read_bytes() if position.exists() else b""
        fresh: list[bytes] = []
        for line in self.daemon.log(handle["container"], since=last.decode()):
            stamp, _, text = line.partition(b" ")
            if stamp > last and text.endswith(b"\n"):
                fresh.append(self._masked(text))
                newest = stamp
        if not fresh:
            return
        descriptor = os.open(self.home / handle["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            log.writelines(fresh)
        temporary = position.with_suffix(".tmp")
        temporary.write_bytes(newest)
        temporary.replace(position)

    def _masked(self, text: bytes) -> bytes:
        for secret in self.secrets:
            text = text.replace(secret, _MASK)
        return text

    def _check_image(self, image: str) -> None:
        try:
            if not self.daemon.has_image(image):
                raise NotAvailable(
                    f"the image {image} is not on this Docker Engine",
                    fix=f"Build it with scripts/build-image, or `docker pull {image}`; then resume_job.",
                )
        except Unreachable as error:
            raise _no_daemon(error) from error

    def _check_gpus(self, task: Task) -> None:
        if task.devices and "nvidia" not in self.daemon.info().get("Runtimes", {}):
            raise NotAvailable(
                "this Docker Engine has no NVIDIA runtime, so its containers see no GPU",
                fix='Install the NVIDIA Container Toolkit, or set `gpus = "none"` in config.toml for the CPU.',
            )

    def _patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return ask()
            except Unreachable as error:
                if time.monotonic() > deadline:
                    raise _no_daemon(error) from error
                time.sleep(1.0)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.home)) if path.is_relative_to(self.home) else str(path)


def _start_advice(said: str) -> str:
    if "could not select device driver" in said:
        return 'Install the NVIDIA Container Toolkit, or set `gpus = "none"` in config.toml for the CPU.'
    if "executable file not found" in said:
        return "The image has no `mask2former` command: name another `image`, or build ours with scripts/build-image."
    if "mount" in said:
        return "A file or folder of the job is not visible to the daemon: it must see this machine's file system."
    return "`doctor platform=docker` checks the daemon; then resume_job."


def _no_daemon(error: Exception) -> NotAvailable:
    return NotAvailable(
        f"the Docker daemon does not answer: {error}",
        fix="Start Docker, or give this user access to its socket; `doctor platform=docker` checks it.",
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value


def _write(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
