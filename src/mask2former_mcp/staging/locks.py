"""One process at a time does a piece of staging; the kernel gives the lock back however its holder ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until this lock file is ours alone."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                os.utime(path)
            fcntl.flock(lock, fcntl.LOCK_UN)
