"""Which process is meant: a pid with its birth, so that a pid used again is somebody else.

On Linux the birth is the boot's id and the start time in clock ticks, which no clock change moves.
"""

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

Identity = dict[str, Any]  # JSON-able: {"pid": int, "birth": str}

_POLL_S = 0.05


def identify(pid: int) -> Identity | None:
    """The process that has this pid now; None when there is none, or only its zombie."""
    birth = _birth(pid)
    return None if birth is None else {"pid": pid, "birth": birth}


def alive(identity: Identity | None) -> bool:
    """Whether exactly this process still runs. A zombie does not run, and neither does a later owner of its pid."""
    return identity is not None and identity.get("birth") is not None and _birth(identity["pid"]) == identity["birth"]


def labelled(name: str, *values: str) -> list[Identity]:
    """Living processes of this user whose environment says NAME=value, for one of the values: all that descends from
    one start, however it was detached."""
    wanted = {f"{name}={value}".encode() for value in values}
    found: list[Identity] = []
    if Path("/proc/self/environ").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _has_variable(entry, wanted) and (identity := identify(int(entry.name))):
                found.append(identity)
        return found
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get(name) in values and (identity := identify(process.pid)):
            found.append(identity)
    return found


def end(identities: Iterable[Identity], *, grace_s: float) -> None:
    """SIGTERM to each, and SIGKILL to what still runs after `grace_s` seconds."""
    for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        identities = [identity for identity in identities if alive(identity)]
        for identity in identities:
            send(identity, number)
        if wait_until_dead(identities, patience):
            return


def send(identity: Identity, number: signal.Signals) -> None:
    """A signal to this process, if it is still the one that is meant."""
    if alive(identity):
        try:
            os.kill(identity["pid"], number)
        except (ProcessLookupError, PermissionError):
            return


def wait_until_dead(identities: Iterable[Identity], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(alive(identity) for identity in identities):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _birth(pid: int) -> str | None:
    stat = _read(f"/proc/{pid}/stat")
    if stat is not None:
        # The name in parentheses may hold anything, so fields are counted from the last parenthesis: state is the
        # first after it, start time the twentieth (proc(5), fields 3 and 22).
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in ("Z", "X", "x") else f"{_boot()}:{fields[19]}"
    if Path("/proc/self/stat").exists():
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def _boot() -> str:
    return (_read("/proc/sys/kernel/random/boot_id") or "").strip()


def _has_variable(entry: Path, wanted: set[bytes]) -> bool:
    try:
        return not wanted.isdisjoint((entry / "environ").read_bytes().split(b"\0"))
    except OSError:
        return False


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
