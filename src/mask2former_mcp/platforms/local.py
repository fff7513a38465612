"""The job as a child process on this machine. The reference implementation of the protocol."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mask2former_mcp.errors import NotAvailable
from mask2former_mcp.platforms import launcher
from mask2former_mcp.platforms.locks import is_held
from mask2former_mcp.platforms.process import Identity, alive, end, identify, labelled, send, wait_until_dead
from mask2former_mcp.platforms.protocol import Handle, Observation, Report, Task, silent

RUN_VARIABLE = "M2F_RUN"  # the label that all processes of one attempt carry in their environment
_LAUNCH_VARIABLE = "M2F_LAUNCH"  # the launcher's own, and a child's between its fork and the command's exec
_START_TIMEOUT_S = 30.0
_RECORD_TIMEOUT_S = 5.0
_ORPHAN_GRACE_S = 2.0


class LocalPlatform:
    """Runs `engine` (what stands for `mask2former`) under launcher.py. Handles hold paths relative to `home`."""

    def __init__(self, home: Path, engine: tuple[str, ...]) -> None:
        self.home = home
        self.engine = engine

    def render(self, task: Task) -> Mapping[str, Any]:
        run = task.job_dir / "run" / str(task.attempt)
        return {
            "argv": [*self.engine, *task.command[1:]],
            "cwd": str(task.job_dir),
            "env": dict(task.environment),
            "log": str(task.log_file),
            "run": str(run),
            "secrets": list(task.secrets),
            "handle": {
                "platform": "local",
                "run": self._relative(run),
                "log": self._relative(task.log_file),
            },
        }

    def submit(self, task: Task, report: Report = silent) -> Handle:
        order = self.render(task)
        run = Path(order["run"])
        run.mkdir(parents=True, exist_ok=True)
        _end_strays(run)
        said = _launch(run, order)
        # The record tells, whatever was said. Without one a launcher may still be at it, or was killed before it.
        if not (run / launcher.PROCESS_FILE).exists():
            _abandon(run)
            raise NotAvailable(
                f"{order['argv'][0]} could not be started: {said}",
                fix="Check that the interpreter exists (setting `python`, or `engine_command`), then resume_job.",
            )
        handle: Handle = order["handle"]
        return handle

    def poll(self, handle: Handle) -> Observation:
        run = self.home / handle["run"]
        # First who is there, then what they have written: a launcher that is gone will write nothing any more.
        is_starting = is_held(run / launcher.LOCK_FILE)
        record = _read(run / launcher.PROCESS_FILE)
        if record is None and is_starting:
            return Observation("waiting", detail="starting")
        if record is None:
            return Observation("missing", detail="it was never started")
        if alive(_identity(record, "command")):
            return Observation("running")
        has_witness = alive(_identity(record, "launcher"))
        ended = _read(run / launcher.EXIT_FILE)
        if ended is not None:
            return Observation("exited", exit_code=int(ended["code"]))
        if has_witness:
            return Observation("running", detail="ending")
        return Observation("missing", detail="its process is gone and nobody recorded an exit code")

    def cancel(self, handle: Handle, *, grace_s: float) -> None:
        """The command first, alone, so that it can write a checkpoint with its workers alive; then all the rest."""
        run = self.home / handle["run"]
        record = _read(run / launcher.PROCESS_FILE)
        if record is None:
            _abandon(run)
            return
        command = _identity(record, "command")
        if command is not None and alive(command):
            send(command, signal.SIGTERM)
            if not wait_until_dead([command], grace_s):
                _kill_group(command)
        end(labelled(RUN_VARIABLE, str(run)), grace_s=_ORPHAN_GRACE_S)
        deadline = time.monotonic() + _RECORD_TIMEOUT_S
        while alive(_identity(record, "launcher")) and not (run / launcher.EXIT_FILE).exists():
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)

    def logs(self, handle: Handle) -> Iterator[str]:
        try:
            with (self.home / handle["log"]).open(encoding="utf-8", errors="replace") as stream:
                yield from stream
        except FileNotFoundError:
            return

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.home)) if path.is_relative_to(self.home) else str(path)


def _end_strays(run: Path) -> None:
    """Before a start: nothing of an earlier attempt may run, nor what a launcher of this one started and did not live
    to record. While a launcher is at work in this folder it is left alone."""
    strays = [earlier for earlier in run.parent.iterdir() if earlier != run]
    if not (run / launcher.PROCESS_FILE).exists() and not is_held(run / launcher.LOCK_FILE):
        strays.append(run)
    if strays:
        _abandon(*strays)


def _launch(run: Path, order: Mapping[str, Any]) -> str:
    """Have launcher.py start it; returns what is to be said if there is no record then."""
    command = [sys.executable, "-I", launcher.__file__, str(run)]
    try:
        started = subprocess.run(
            command,
            env={**os.environ, _LAUNCH_VARIABLE: str(run)},
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=_START_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its launcher said nothing for {_START_TIMEOUT_S:.0f} s"
    except OSError as error:
        return str(error)
    if started.returncode == launcher.ALREADY_STARTED:
        _await_record(run)
        return "the launcher of an earlier try left no record"
    return started.stderr.strip() or f"launcher exit code {started.returncode}"


def _await_record(run: Path) -> None:
    """While a launcher of an earlier try is at work."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not (run / launcher.PROCESS_FILE).exists() and is_held(run / launcher.LOCK_FILE):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _abandon(*runs: Path) -> None:
    """Kill starts that hang, wherever they hang: a launcher may wake up after we looked and start the command all the
    same. What is killed forks no more, so when a look finds nobody, and another one too (a fork may hide from a single
    look), nobody can come."""
    names = [str(run) for run in runs]
    deadline = time.monotonic() + _RECORD_TIMEOUT_S
    empty = 0
    while empty < 2 and time.monotonic() < deadline:
        found = [*labelled(_LAUNCH_VARIABLE, *names), *labelled(RUN_VARIABLE, *names)]
        for process in found:
            send(process, signal.SIGKILL)
        empty = 0 if found else empty + 1
        time.sleep(0.02)


def _identity(record: Mapping[str, Any], name: str) -> Identity | None:
    found: Identity = record[name]
    return found if found["birth"] is not None else identify(found["pid"])


def _kill_group(command: Identity) -> None:
    if alive(command):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(command["pid"], signal.SIGKILL)
    wait_until_dead([command], _RECORD_TIMEOUT_S)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value
