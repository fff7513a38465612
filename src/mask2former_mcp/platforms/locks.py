"""Locks that the kernel gives back when their holder dies, however it dies."""

import fcntl
import os
import time
import weakref
from pathlib import Path
from types import TracebackType

_POLL_S = 0.1


class ProcessLock:
    """An exclusive lock on a file, held by this open file until `release`, or the process's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        _locks.add(self)

    def acquire(self, timeout_s: float = 0.0) -> bool:
        """Whether the lock is ours now. OSError when the folder is gone."""
        deadline = time.monotonic() + timeout_s
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return False
                time.sleep(_POLL_S)
            else:
                self._descriptor = descriptor
                return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "ProcessLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_locks: "weakref.WeakSet[ProcessLock]" = weakref.WeakSet()


def _let_go() -> None:
    """In a forked worker, which must not keep a lock alive after its parent."""
    for lock in _locks:
        lock.release()


os.register_at_fork(after_in_child=_let_go)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock of this file. Asking takes it for an instant: acquire with a timeout."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
