"""The detached process behind `background`: `python -m mask2former_mcp.datasets.worker <folder>`."""

import fcntl
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mask2former_mcp.datasets import background, check, facts
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.errors import Mask2FormerError

_TELL_EVERY_S = 0.5
_TAKE_LOCK_S = 5.0


def main(folder: Path) -> int:
    """Does the folder's request and writes result.json or error.json. 0: written, 1: failed, 2: another one works."""
    with suppress(OSError):
        os.nice(5)  # a running trainer comes first
    with (folder / "lock").open("a") as lock:
        if not _locked(lock.fileno()):
            return 2
        try:
            request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 2  # two were started at once, and the other one has done it
        failure = {"message": "the check failed", "fix": f"See {folder / 'log.txt'}, then call again."}
        try:
            background.write_json(folder / "result.json", _do(request, Path(request["home"]), _Teller(folder)))
            failure = {}
        except Mask2FormerError as cause:
            failure = {"message": cause.message, "fix": cause.fix}
        finally:  # whatever ended it, the next call can say so
            if failure:
                background.write_json(folder / "error.json", failure)
            (folder / "request.json").unlink(missing_ok=True)
    return 1 if failure else 0


def _do(request: dict[str, Any], home: Path, tell: "_Teller") -> dict[str, Any]:
    if request["kind"] == "facts":
        ref = DatasetRef.parse(request["dataset"])
        return facts.remember(ref, request["format"], home, lambda done: tell("annotations", done, 0))
    return check.run(request, home, tell).as_dict()


def _locked(descriptor: int) -> bool:
    """Waits a little: who looks whether anybody works holds the lock for a moment."""
    end = time.monotonic() + _TAKE_LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)


class _Teller:
    """Writes progress.json, not too often."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.next = folder, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + _TELL_EVERY_S
            background.write_json(self.folder / "progress.json", {"stage": stage, "done": done, "total": total})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
