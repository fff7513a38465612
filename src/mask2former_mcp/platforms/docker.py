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
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mask2former_mcp.errors import NotAvailable
from mask2former_mcp.platforms import docker_fitness as fitness
from mask2former_mcp.platforms.docker_daemon import Conflict, Daemon, Gone, Login, Refused, Unreachable, patiently
from mask2former_mcp.platforms.docker_image import bring
from mask2former_mcp.platforms.protocol import Handle, Observation, Report, Task, silent

LABEL = "org.mask2former-mcp"
RESULTS = "/results"
_EXIT_FILE = "exit_status.json"
_POSITION_FILE = "log_position"
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+Z")
_MASK = b"***"
_PATIENCE_S = 60.0  # for a daemon that restarts
_PATIENCE_AT_START_S = 20.0
_LOGLESS = ("dead", "removing")  # states in which Docker refuses to show a log, for ever
_SIGNALLED = 128  # exit codes from here on: ended by a signal, whoever sent it
_GB = 2**30
_LOOK = "`doctor platform=docker` checks the daemon; then resume_job."


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

    def __init__(
        self,
        home: Path,
        limits: Limits,
        daemon: Daemon,
        secrets: tuple[str, ...] = (),
        logins: Mapping[str, Login] | None = None,
    ) -> None:
        self.home = home
        self.limits = limits
        self.daemon = daemon
        self.secrets = tuple(secret.encode() for secret in secrets)
        self.logins = logins or {}
        self._watched: set[str] = set()  # containers seen alive from here, by a daemon that has answered ever since

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
            # Nobody could try where TAO's images write below their root; what they do goes with the container.
            "ReadonlyRootfs": limits.read_only_root and not task.is_foreign,
            "RestartPolicy": {"Name": "no"},
            "SecurityOpt": ["no-new-privileges"],
            "ShmSize": int(limits.shm_gb * _GB),
            "Tmpfs": {"/tmp": "rw,nosuid,nodev,mode=1777,size=4g"},
        }
        if task.groups:
            host["GroupAdd"] = [str(group) for group in task.groups]
        if limits.cpus:
            host["NanoCpus"] = int(limits.cpus * 1e9)
        if task.devices:
            request = {"Driver": "nvidia", "DeviceIDs": list(task.devices), "Capabilities": [["gpu"]]}
            host["DeviceRequests"] = [request]
        # NVIDIA's entry point readies the CUDA libraries and then runs its arguments; ours is the command itself.
        entrypoint = {} if task.is_foreign else {"Entrypoint": [task.command[0]]}
        create = {
            "Image": task.image,
            **entrypoint,
            "Cmd": list(task.command if task.is_foreign else task.command[1:]),
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

    def submit(self, task: Task, report: Report = silent) -> Handle:
        order = self.render(task)
        handle: Handle = order["handle"]
        run = self.home / handle["run"]
        run.mkdir(parents=True, exist_ok=True)
        if (run / _EXIT_FILE).exists():
            return handle
        self._check_daemon(task, report)
        bring(self.daemon, str(task.image), self.logins, report)
        name = order["name"]
        try:
            patiently(lambda: self._create(name, order["create"]), _PATIENCE_AT_START_S, report)
        except (Refused, Gone) as error:
            if reason := fitness.unseen(str(error)):
                raise NotAvailable(reason[0], fix=reason[1]) from error
            raise NotAvailable(f"Docker refused the container: {error}", fix=_LOOK) from error
        try:
            patiently(lambda: self._start(name), _PATIENCE_AT_START_S, report)
        except (Refused, Gone) as error:
            patiently(lambda: self.daemon.remove(name), _PATIENCE_AT_START_S)
            raise NotAvailable(f"the container could not be started: {error}", fix=_start_advice(str(error))) from error
        return handle

    def poll(self, handle: Handle) -> Observation:
        name = handle["container"]
        if (ended := _read(self.home / handle["run"] / _EXIT_FILE)) is not None:
            return Observation("exited", **ended)
        try:
            state = self.daemon.inspect(name)["State"]
            if state["Status"] == "created":
                # Created and not yet started: for whoever submits it is still to do.
                return Observation("missing", detail="its container was never started")
            if state["Status"] not in _LOGLESS:
                self._copy_log(handle)
        except Gone:
            return Observation("missing", detail="its container is gone and nobody recorded an exit code")
        except Unreachable as error:
            self._watched.discard(name)
            return Observation("running", detail=f"waiting for the Docker daemon: {error}", is_away=True)
        if state["Status"] in ("running", "paused", "restarting", "removing"):
            self._watched.add(name)
            return Observation("running")
        return _ended(state, watched=name in self._watched)

    def cancel(self, handle: Handle, *, grace_s: float) -> None:
        """SIGTERM, after `grace_s` SIGKILL; then the end is recorded, the log complete and the container removed."""
        name = handle["container"]
        try:
            state = patiently(lambda: self.daemon.inspect(name), _PATIENCE_S)["State"]
        except Gone:
            return
        if state["Status"] == "created":
            patiently(lambda: self.daemon.remove(name), _PATIENCE_S)
            return
        had_ended = state["Status"] in ("exited", "dead")
        try:
            patiently(lambda: self.daemon.stop(name, grace_s), _PATIENCE_S)
            state = patiently(lambda: self.daemon.inspect(name), _PATIENCE_S)["State"]
            if state["Status"] not in _LOGLESS:
                patiently(lambda: self._copy_log(handle), _PATIENCE_S)
            ended = _ended(state, watched=not had_ended or name in self._watched)
            _write(
                self.home / handle["run"] / _EXIT_FILE,
                {key: value for key, value in asdict(ended).items() if key != "state"},
            )
            patiently(lambda: self.daemon.remove(name), _PATIENCE_S)
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
        if not _STAMP.fullmatch(last):
            last = b""
        fresh: list[bytes] = []
        stamp = newest = b""
        for line in self.daemon.log(handle["container"], since=last.decode()):
            first, _, text = line.partition(b" ")
            if _STAMP.fullmatch(first):
                stamp = first
            else:
                text = line  # it goes with the line before
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

    def _check_daemon(self, task: Task, report: Report) -> None:
        """What would keep it from running, asked before a long pull."""
        daemon = self.daemon
        reason = fitness.remote(daemon.host)
        if reason is None:
            try:
                info, version = patiently(lambda: (daemon.info(), daemon.version()), _PATIENCE_AT_START_S, report)
            except (Refused, Gone) as error:
                raise NotAvailable(f"the Docker daemon refuses to be asked: {error}", fix=_LOOK) from error
            reason = fitness.unfit(info, version) or fitness.without_gpus(info, task.devices)
        if reason is not None:
            raise NotAvailable(reason[0], fix=reason[1])

    def _create(self, name: str, config: Mapping[str, Any]) -> None:
        with contextlib.suppress(Conflict):  # an earlier start, perhaps cut off between create and start
            self.daemon.create(name, config)

    def _start(self, name: str) -> None:
        if self.daemon.inspect(name)["State"]["Status"] == "created":
            self.daemon.start(name)
            self._watched.add(name)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.home)) if path.is_relative_to(self.home) else str(path)


def _ended(state: Mapping[str, Any], *, watched: bool) -> Observation:
    """A daemon that stops without live-restore, and a machine that goes down, end containers by a signal, at which some
    programs exit with 0. Where nobody watched, such an end is taken for theirs."""
    code, memory = int(state["ExitCode"]), bool(state["OOMKilled"])
    cut_off = not watched and not memory and (code == 0 or code >= _SIGNALLED)
    detail = (
        f"its container ended (exit code {code}) while the Docker daemon or its supervisor was away" if cut_off else ""
    )
    return Observation("exited", exit_code=code, detail=detail, cut_off=cut_off, out_of_memory=memory)


def _start_advice(said: str) -> str:
    if "could not select device driver" in said:
        return fitness.TOOLKIT
    if "executable file not found" in said:
        return "The image has no `mask2former` command: name another `image`, or build ours with scripts/build-image."
    if "mount" in said:
        return "A file or folder of the job is not visible to the daemon: it must see this machine's file system."
    return _LOOK


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
