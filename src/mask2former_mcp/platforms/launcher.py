"""The smallest possible parent of a job's process: it starts the command, waits, and writes down how it ended.

A supervisor may be killed and replaced; whoever comes next still learns the exit code from `exit_status.json`. Started
by file, not as a module (`python -I launcher.py RUN_DIR`), with standard library only; what to start comes as JSON on
stdin: {argv, cwd, env, log, secrets}. The caller returns when `process.json` stands, so a start is never in doubt.

RUN_DIR belongs to one attempt. A second launcher in the same folder does nothing: the fence against two trainers.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

PROCESS_FILE = "process.json"
EXIT_FILE = "exit_status.json"
LOCK_FILE = "launch.lock"
STARTED, ALREADY_STARTED, NOT_STARTED = 0, 10, 11
_ORPHAN_GRACE_S = 5.0
_LOCK_TRIES, _LOCK_AGAIN_S = 20, 0.05


def main(run_dir: Path) -> int:
    order = json.load(sys.stdin)
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as stream:
            answer = stream.read()
        if answer.startswith("error:"):
            sys.stderr.write(answer.removeprefix("error:"))
        return {"started": STARTED, "already": ALREADY_STARTED}.get(answer, NOT_STARTED)
    os.close(reader)
    os.setsid()
    with os.fdopen(writer, "w") as tell:
        _keep(run_dir, order, tell)
    os._exit(0)


def _keep(run_dir: Path, order: dict[str, Any], tell: IO[str]) -> None:
    """Start the command if nobody has, and answer on `tell`."""
    with (run_dir / LOCK_FILE).open("a") as lock:
        if not _alone(lock) or (run_dir / PROCESS_FILE).exists() or (run_dir / EXIT_FILE).exists():
            tell.write("already")
            return
        _run(run_dir, order, tell)


def _alone(lock: IO[str]) -> bool:
    """Whether this is the only launcher here. Tried for a second: whoever asks takes the lock for an instant."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_LOCK_AGAIN_S)
        else:
            return True
    return False


def _run(run_dir: Path, order: dict[str, Any], tell: IO[str]) -> None:
    """Start the command, answer, wait for the end and record it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # The command is told by its own pid; its witness stays. A handler, because SIG_IGN would be inherited by it.
        signal.signal(number, _stay)
    try:
        process, copier = _start(order)
    except OSError as error:
        tell.write(f"error:{error}")
        return
    try:
        _write(run_dir / PROCESS_FILE, {"launcher": _identity(os.getpid()), "command": _identity(process.pid)})
    except OSError as error:  # what nobody could find again must not run
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        tell.write(f"error:{error}")
        return
    tell.write("started")
    tell.close()
    _silence()
    code = process.wait()
    # Asked at once: the number of a group that is empty may be given to somebody else.
    leaves_some = _signal_group(process.pid, 0)
    _write(run_dir / EXIT_FILE, {"code": code, "ended_at": time.time()})
    if copier is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            copier.wait(_ORPHAN_GRACE_S)
    if leaves_some:
        _end_group(process.pid)


def _stay(_number: int, _frame: object) -> None:
    """Hear the signal and go on."""


def _start(order: dict[str, Any]) -> tuple["subprocess.Popen[bytes]", "subprocess.Popen[bytes] | None"]:
    """The command in its own session and process group. Its output goes to the log: straight, so that nobody's death
    can close the pipe under it, or through a process that masks secrets where there are any."""
    secrets = [secret.encode() for secret in order["secrets"]]
    descriptor = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    copier = None
    try:
        output = descriptor
        if secrets:
            copier = _masking_copier(descriptor, secrets)
            assert copier.stdin is not None
            output = copier.stdin.fileno()
        process = subprocess.Popen(
            order["argv"],
            cwd=order["cwd"],
            env={**order["env"], "M2F_RUN": order["run"]},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    except OSError:
        if copier is not None:
            copier.kill()
            copier.wait()
        raise
    finally:
        os.close(descriptor)
        if copier is not None and copier.stdin is not None:
            copier.stdin.close()
    return process, copier


def _masking_copier(log: int, secrets: list[bytes]) -> "subprocess.Popen[bytes]":
    """A process of its own between command and log, in a session of its own: it ends when the command's output ends,
    whatever happens to the launcher. The secrets come over its stdin, first, as one line of JSON. It must not inherit
    our stderr: that is a pipe to whoever submits, who would wait for its end as long as the command runs."""
    command = [sys.executable, "-I", __file__, "--copy"]
    copier = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert copier.stdin is not None
    copier.stdin.write(json.dumps([secret.decode() for secret in secrets]).encode() + b"\n")
    copier.stdin.flush()
    return copier


def copy_masked(source: IO[bytes], sink: IO[bytes]) -> None:
    """Copy line by line with each secret replaced; the first line names the secrets."""
    secrets = [secret.encode() for secret in json.loads(source.readline())]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for line in source:
        for secret in secrets:
            line = line.replace(secret, b"***")
        sink.write(line)
        sink.flush()


def _end_group(group: int) -> None:
    """End what the command left behind in its group (data loaders that outlived it)."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _ORPHAN_GRACE_S
        remains = _signal_group(group, number)
        while remains and time.monotonic() < deadline:
            time.sleep(0.1)
            remains = _signal_group(group, 0)
        if not remains:
            return


def _signal_group(group: int, number: int) -> bool:
    """Whether there was anybody to signal."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _identity(pid: int) -> dict[str, Any]:
    """As platforms/process.py writes it: pid and birth. Where there is no /proc, the birth is asked for later."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return {"pid": pid, "birth": None}
    return {"pid": pid, "birth": f"{boot}:{stat[stat.rindex(')') + 2 :].split()[19]}"}


def _silence() -> None:
    """Let go of the caller's streams: a pipe held open here would keep its reader waiting for the job's whole life."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all, and on the disk."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    if sys.argv[1] == "--copy":
        copy_masked(sys.stdin.buffer, sys.stdout.buffer)
        sys.exit(0)
    sys.exit(main(Path(sys.argv[1])))
