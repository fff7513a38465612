"""Work on a dataset that outlives the call that asked for it: a detached process per request, found again by digest.

`<home>/checks/<digest>/` holds request.json, progress.json, and at the end result.json or error.json. The process
holds a lock on `lock` while it lives, so that a crashed one is noticed and replaced. A check's result is handed out
once: the next identical call looks at the data anew.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former_mcp.errors import DatasetError

_STALE_S = 3600.0  # an unfetched result is forgotten: the data may have changed since
_START_S = 20.0  # a process that has not taken its lock by then never will


class OutOfTime(Exception):
    """A signal, not a fault: the call's time is used up, the work goes on elsewhere."""


@dataclass(frozen=True, slots=True)
class Work:
    """One request's folder."""

    folder: Path

    def progress(self) -> dict[str, Any]:
        """{stage, done, total} as last written; empty before the first word."""
        return _read(self.folder / "progress.json") or {}

    def finished(self) -> dict[str, Any] | None:
        """{"result": ...} or {"error": ...}, or None while it is not finished. Old ones do not count."""
        for name in ("result", "error"):
            path = self.folder / f"{name}.json"
            found = _read(path)
            if found is not None and time.time() - path.stat().st_mtime < _STALE_S:
                return {name: found}
        return None

    def take(self) -> dict[str, Any] | None:
        """Like `finished`, and forgets it. Raises DatasetError when the work failed."""
        found = self.finished()
        if found is None:
            return None
        for name in ("result.json", "error.json", "progress.json"):
            (self.folder / name).unlink(missing_ok=True)
        if "error" in found:
            raise DatasetError(found["error"]["message"], fix=found["error"]["fix"])
        result: dict[str, Any] = found["result"]
        return result

    def alive(self) -> bool:
        """Whether a process holds the lock, or was started so recently that it may not have it yet."""
        try:
            with (self.folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        started = _read(self.folder / "started.json")
        return started is not None and time.time() - started["at"] < _START_S and _exists(started["pid"])


def find(request: Mapping[str, Any], home: Path) -> Work:
    """Where this request's work is, whether or not there is any."""
    text = json.dumps(request, sort_keys=True)
    return Work(home / "checks" / hashlib.sha256(text.encode()).hexdigest()[:24])


def start(request: Mapping[str, Any], home: Path) -> Work:
    """Starts the work unless it is under way or finished; returns at once."""
    work = find(request, home)
    if work.finished() is not None or work.alive():
        return work
    write_json(work.folder / "request.json", {**request, "home": str(home)})
    (work.folder / "progress.json").unlink(missing_ok=True)
    with (work.folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mask2former_mcp.datasets.worker", str(work.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
    write_json(work.folder / "started.json", {"pid": process.pid, "at": time.time()})
    threading.Thread(target=process.wait, daemon=True).start()  # takes the zombie away if we outlive it
    return work


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
