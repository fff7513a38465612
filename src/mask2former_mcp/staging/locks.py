"""Lock files beside what they guard; the kernel gives them back when their holder dies."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PAUSE_S = 0.5  # between two tries, at most


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[Path]:
    """Holds a lock file, alone. The holder may unlink it: a waiter then takes the new one.

    `waiting` is called again and again while another process holds it, and may raise to wait no longer.
    """
    while True:
        with path.open("a") as lock:
            pause = 0.01
            while not _is_taken(lock):
                if waiting:
                    waiting()
                time.sleep(pause)
                pause = min(2 * pause, _PAUSE_S)
            if _is_still(lock.fileno(), path):
                yield path
                return


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """The same without waiting: whether the lock is held."""
    with path.open("a") as lock:
        yield _is_taken(lock) and _is_still(lock.fileno(), path)


def _is_taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
