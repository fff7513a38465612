"""Objects on this disk, each once, shared by all jobs and trials: `<home>/cache/s3/objects/<k>/<key>`.

The key is a digest of (URI, version or ETag, size), so a changed object is another entry. Users (mirrors) get hard
links. What leaves the cache, and when, is decided in eviction.py.
"""

import ctypes
import hashlib
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from mask2former_mcp.staging import durable, transfer
from mask2former_mcp.staging.locks import locked
from mask2former_mcp.staging.s3 import Object
from mask2former_mcp.staging.transfer import Progress

_WORKING_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@dataclass(frozen=True, slots=True)
class Cache:
    root: Path  # <home>/cache/s3

    @classmethod
    def of(cls, home: Path) -> "Cache":
        return cls(home / "cache" / "s3")

    def has(self, source: Object) -> bool:
        """Whether it is there whole: what a power cut left of a file counts for nothing."""
        place = self._place(source)
        try:
            if place.stat().st_size != source.size:
                return False
        except FileNotFoundError:
            return False
        # A file that was written in ranges may have its size and holes.
        return source.size <= transfer.RANGE or durable.holds(_mark(place))

    def missing(self, source: Object) -> int:
        """Bytes of it that will need room: of a broken transfer those that had not come."""
        return 0 if self.has(source) else max(0, source.size - transfer.begun(self._place(source)))

    def fetch(self, source: Object, progress: Progress | None = None) -> Path:
        """The object's file in the cache; fetched when it is not there, a large one by one process however many ask."""
        place = self._place(source)
        if self.has(source):
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.size <= transfer.RANGE:
            transfer.download(source, place, progress=progress)
            return place
        with locked(place.with_name(f".{place.name}.lock"), progress and (lambda: progress(0))) as lock:
            if not self.has(source):
                transfer.download(source, place, progress=progress)
                durable.mark(_mark(place), place)
            lock.unlink(missing_ok=True)
        return place

    def link(self, source: Object, target: Path, progress: Progress | None = None) -> None:
        """Puts the object at `target`, whose folder is there."""
        while True:
            place = self.fetch(source, progress)
            try:
                os.link(place, target)
                return
            except FileNotFoundError:
                continue  # evicted between the two lines
            except FileExistsError:
                _replace(place, target)
                return
            except OSError:
                shutil.copyfile(place, target)  # a file system without hard links
                return

    def _place(self, source: Object) -> Path:
        state = source.version or source.etag
        key = hashlib.sha256(f"{source.uri}\0{state}\0{source.size}".encode()).hexdigest()
        return self.root / "objects" / key[:2] / key


def _replace(place: Path, target: Path) -> None:
    """An outline's empty file, or one that a power cut damaged, gives way at once."""
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.{threading.get_ident()}")
    temporary.unlink(missing_ok=True)  # of a killed process with this process's id
    try:
        os.link(place, temporary)
    except OSError:
        shutil.copyfile(place, temporary)
    _exchange(temporary, target)
    temporary.unlink(missing_ok=True)


def _exchange(new: Path, old: Path) -> None:
    """Puts `new` where `old` is, at once. Where a rename removes a file, ext4 and btrfs first write all of the new one
    to the disk, and the caller waits; where two files change places they do not. `new` is there afterwards or not."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)  # Python has no name for it
    if swap is None or swap(_WORKING_FOLDER, os.fsencode(new), _WORKING_FOLDER, os.fsencode(old), _EXCHANGE) != 0:
        new.replace(old)


def _mark(place: Path) -> Path:
    return place.with_name(f"{place.name}.whole")
