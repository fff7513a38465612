"""Objects on this disk, each once: shared by all jobs and trials, bounded in size, least recently used ones first out.

`<home>/cache/s3/objects/<k>/<key>`; the key is a digest of (URI, version or ETag, size), so a changed object is another
entry. Users get hard links: an entry that is taken out of the cache stays with whoever linked it.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mask2former_mcp.staging import transfer
from mask2former_mcp.staging.s3 import Object
from mask2former_mcp.staging.transfer import Progress

LIMIT = 200 << 30  # bytes


@dataclass(frozen=True, slots=True)
class Cache:
    root: Path  # <home>/cache/s3
    limit: int = LIMIT

    @classmethod
    def of(cls, home: Path) -> "Cache":
        return cls(home / "cache" / "s3")

    def has(self, source: Object) -> bool:
        return self._place(source).exists()

    def fetch(self, source: Object, progress: Progress | None = None) -> Path:
        """The object's file in the cache; fetched when it is not there, by one process however many ask."""
        place = self._place(source)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with locked(place.with_name(f".{place.name}.lock")) as lock:
                if not place.exists():
                    transfer.download(source, place, progress=progress)
                lock.unlink(missing_ok=True)
        os.utime(place)
        return place

    def link(self, source: Object, target: Path, progress: Progress | None = None) -> None:
        """Puts the object at `target`, with the object's own time."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}")
        while True:
            place = self.fetch(source, progress)
            try:
                os.link(place, temporary)
                break
            except FileNotFoundError:
                continue  # evicted between the two lines
            except OSError:
                shutil.copyfile(place, temporary)  # a file system without hard links
                break
        temporary.replace(target)

    def trim(self) -> int:
        """Forgets the least recently used objects until the rest is within the limit; returns the bytes freed.

        Objects that a dataset folder or a job has linked free nothing and stay.
        """
        freed = 0
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".trim.lock"):
            entries = []
            for path in self.root.glob("objects/*/*"):
                if not path.name.startswith(".") and path.suffix == "":
                    status = path.stat()
                    entries.append((status.st_mtime, status.st_size, status.st_nlink, path))
            total = sum(size for _, size, _, _ in entries)
            for _, size, links, path in sorted(entries, key=lambda entry: entry[0]):
                if total <= self.limit:
                    break
                if links == 1:
                    path.unlink(missing_ok=True)
                    total -= size
                    freed += size
        return freed

    def _place(self, source: Object) -> Path:
        state = source.version or source.etag
        key = hashlib.sha256(f"{source.uri}\0{state}\0{source.size}".encode()).hexdigest()
        return self.root / "objects" / key[:2] / key


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Holds a lock file, alone. The holder may unlink it: a waiter then takes the new one."""
    while True:
        with path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(lock.fileno()), path.stat())
            except FileNotFoundError:
                same = False
            if same:
                yield path
                return
