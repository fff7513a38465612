"""What may be trusted after a power cut, without waiting for the disk when a file is written.

A mark beside a file (or a folder) says in which boot of this machine it was written; in that boot it holds. A little
later, in the background, the data goes to the disk, and then the mark says `kept`: it holds for ever. A mark of an
earlier boot that never came so far holds no more: what it stands for is looked at, or made, again.
"""

import os
import queue
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

BLOCK = 512  # bytes, the unit of st_blocks
_KEPT = "kept"
_REST_S = 5.0  # what is being written now needs the disk first, and a process that ends now need not wait for it
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def mark(path: Path, file: Path | None = None) -> None:
    """Writes the mark for one file, or for all that has been written up to now."""
    _write(path, boot())
    _work().put((time.monotonic() + _REST_S, path, file))


def holds(path: Path) -> bool:
    try:
        return path.read_text(encoding="ascii", errors="replace") in (boot(), _KEPT)
    except FileNotFoundError:
        return False


@cache
def boot() -> str:
    """Names this run of the machine; where nobody knows, this process alone."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return f"process {os.getpid()} {os.urandom(8).hex()}"


@cache
def _work() -> "queue.SimpleQueue[tuple[float, Path, Path | None]]":
    """One thread for the process; what it has not done when the process ends is left undone."""
    waiting: queue.SimpleQueue[tuple[float, Path, Path | None]] = queue.SimpleQueue()
    threading.Thread(target=_keep, args=(waiting,), daemon=True, name="durable").start()
    return waiting


def _keep(waiting: "queue.SimpleQueue[tuple[float, Path, Path | None]]") -> None:
    while True:
        due, path, file = waiting.get()
        time.sleep(max(0.0, due - time.monotonic()))
        with suppress(OSError):  # removed meanwhile, or a disk that fails: then the mark stays what it is
            if file is None:
                os.sync()
            else:
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            if path.exists():
                _write(path, _KEPT)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    part.write_text(text, encoding="ascii")
    part.replace(path)
