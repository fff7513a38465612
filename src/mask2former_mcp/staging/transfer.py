"""One object to one file: in ranges, several at once, going on where a broken transfer stopped, verified at the end.

Beside the unfinished file lies a journal of finished ranges with the MD5 of the parts in them; a later process reads it
and fetches only the rest. It belongs to one state of the object (ETag and size): another state starts from nothing.
"""

import json
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from mask2former_mcp.errors import DatasetError, NotAvailable, NotReady
from mask2former_mcp.staging import s3
from mask2former_mcp.staging.durable import BLOCK
from mask2former_mcp.staging.etag import Parts, parts_of
from mask2former_mcp.staging.s3 import Object

RANGE = 16 << 20  # bytes of one request, at most
_PIECE = 512 << 10  # read and written at once: of smaller ones the bookkeeping costs, larger ones leave the cache
_UNHASHED = "-" * 32  # in the journal: of a range inside a part, which is hashed when it is whole
_OPAQUE = "?" * 32  # in the journal: of a range that the store encrypts with a key, so that the ETag is no digest of it
_PATIENCE = 6  # broken transfers in a row without a byte of progress
_BROKEN = (
    IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPError, ConnectionError, TimeoutError, NotReady,
)  # fmt: skip
Progress = Callable[[int], None]  # more bytes arrived; may raise to stop (what is there stays for the next time)


def download(source: Object, target: Path, *, progress: Progress | None = None) -> None:
    """Fetches the object into `target`, which appears by one rename. DatasetError, NotAvailable, OSError.

    Of a large object (over RANGE) one process at a time: what an earlier one left is gone on with.
    """
    whose = f".{os.getpid()}.{threading.get_ident()}" if source.size <= RANGE else ""
    part = target.with_name(f"{target.name}{whose}.part")
    parts = parts_of(source)
    found = _arrived(source, part, progress, parts)
    if parts is not None and not parts.is_certain and not parts.confirm(found):
        # The size of the parts is a guess: the same bytes a second time are what the store holds.
        _discard(part)
        again = _arrived(source, part, progress and (lambda _: progress(0)), parts)
        parts = None if again == found else parts
        found = again
    if parts is not None and not parts.confirm(found):
        _discard(part)
        raise DatasetError(
            f"{source.uri}: the bytes that arrived do not have the checksum {source.etag} that the store gives",
            fix="Try again; if it repeats, the object is damaged, or encrypted by a key that changes its ETag.",
        )
    part.replace(target)
    _journal(part).unlink(missing_ok=True)


def begun(target: Path) -> int:
    """Bytes on the disk of a large object whose transfer into `target` broke off: those that need no more room."""
    try:
        return target.with_name(f"{target.name}.part").stat().st_blocks * BLOCK
    except FileNotFoundError:
        return 0


def _arrived(source: Object, part: Path, progress: Progress | None, parts: Parts | None) -> str | None:
    """The object in the file `part`, and the MD5s of its parts; None where they have nothing to be compared with."""
    if source.size > RANGE:
        return _Ranges(source, part, progress, parts).run()
    digests = parts.digests() if parts else None
    with part.open("wb") as out:

        def write(piece: bytes) -> None:
            out.write(piece)
            if digests:
                digests.update(piece)
            if progress:
                progress(len(piece))

        opaque = _read(source, 0, source.size, write)
    return digests.found() if digests and not opaque else None


def _discard(part: Path) -> None:
    part.unlink()
    _journal(part).unlink(missing_ok=True)


@dataclass(slots=True)
class _Ranges:
    """Ranges of one object on their way into one file.

    `parts` are what its ETag speaks of, None where it is no digest of the bytes: then every range has its length, and
    more cannot be said. Small parts are hashed when their range has arrived; large ones in a thread that follows. Each
    range is mapped and hashed in one call: after every small one a thread would wait for all others, that receive.
    """

    source: Object
    part: Path
    progress: Progress | None
    parts: Parts | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: dict[int, str] = field(default_factory=dict)  # offset -> MD5s of its parts, _UNHASHED or _OPAQUE
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> str | None:
        """The MD5s of the parts, None where they say nothing."""
        self._recover()
        rest = [offset for offset in range(0, self.source.size, self.step) if offset not in self.done]
        if self.progress and self.done:
            self.progress(sum(self._end(offset) - offset for offset in self.done))
        descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o644)
        follower = None
        try:
            os.ftruncate(descriptor, self.source.size)
            follower = _Follower(descriptor, self, self.parts) if self.parts and not self.hashed_by_range else None
            try:
                self._fetch_all(descriptor, rest)
            except BaseException:
                self.stop.set()
                raise
            finally:
                found = follower.result() if follower else "".join(self.done[o] for o in sorted(self.done))
        finally:
            os.close(descriptor)
        return None if self.parts is None or _OPAQUE in self.done.values() else found

    @property
    def hashed_by_range(self) -> bool:
        return self.parts is not None and self.parts.size <= RANGE

    @property
    def step(self) -> int:
        """Bytes of a range: as many whole parts as fit."""
        return RANGE - RANGE % self.parts.size if self.parts and self.hashed_by_range else RANGE

    def _end(self, offset: int) -> int:
        return min(offset + self.step, self.source.size)

    def _fetch_all(self, descriptor: int, rest: list[int]) -> None:
        with _journal(self.part).open("a", encoding="utf-8") as journal, ThreadPoolExecutor(s3.THREADS) as pool:

            def one(offset: int) -> None:
                found = self._fetch(descriptor, offset)
                with self.lock:
                    journal.write(f"{offset} {found}\n")
                    journal.flush()
                    self.done[offset] = found

            futures = [pool.submit(one, offset) for offset in rest]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _recover(self) -> None:
        """The journal's first line says which state of the object it is about, and in which ranges."""
        head = json.dumps([str(self.source.uri), self.source.etag, self.source.size, self.step])
        journal = _journal(self.part)
        if self.part.exists() and journal.exists():
            lines = journal.read_text(encoding="utf-8").splitlines()
            if lines and lines[0] == head:
                for line in lines[1:]:
                    offset, _, found = line.partition(" ")
                    # A torn line is fetched again.
                    if offset.isdigit() and (found == _OPAQUE or len(found) == self._length(int(offset))):
                        self.done[int(offset)] = found
                kept = [head, *(f"{offset} {found}" for offset, found in self.done.items())]
                journal.write_text("\n".join(kept) + "\n", encoding="utf-8")
                return
        self.part.unlink(missing_ok=True)
        journal.write_text(head + "\n", encoding="utf-8")

    def _length(self, offset: int) -> int:
        """Of what the journal holds about a range."""
        if self.parts is None or not self.hashed_by_range:
            return len(_UNHASHED)
        return 32 * -(-(self._end(offset) - offset) // self.parts.size)

    def _fetch(self, descriptor: int, offset: int) -> str:
        position = offset

        def write(piece: bytes) -> None:
            nonlocal position
            if self.stop.is_set():
                raise InterruptedError(f"{self.source.uri}: stopped")
            os.pwrite(descriptor, piece, position)
            position += len(piece)
            if self.progress:
                with self.lock:
                    self.progress(len(piece))

        if _read(self.source, offset, self._end(offset), write):
            return _OPAQUE
        if self.parts is None or not self.hashed_by_range:
            return _UNHASHED
        digests = self.parts.digests()
        with _mapped(descriptor, self.source.size) as content, content[offset : self._end(offset)] as piece:
            digests.update(piece)
        return digests.found()


class _Follower:
    """Hashes a file that is being filled: follows the ranges in order, so that it has done soon after the last."""

    def __init__(self, descriptor: int, ranges: _Ranges, parts: Parts) -> None:
        self._descriptor, self._ranges = descriptor, ranges
        self._digests = parts.digests()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Of a stopped transfer, of no meaning."""
        self._thread.join()
        return self._digests.found()

    def _follow(self) -> None:
        size, step = self._ranges.source.size, self._ranges.step
        with _mapped(self._descriptor, size) as content:
            for offset in range(0, size, step):
                while offset not in self._ranges.done:
                    if self._ranges.stop.wait(0.02):
                        return
                with content[offset : offset + step] as piece:
                    self._digests.update(piece)


@contextmanager
def _mapped(descriptor: int, size: int) -> Iterator[memoryview]:
    """The file's bytes."""
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as content, memoryview(content) as view:
        yield view


def _read(source: Object, start: int, end: int, write: Callable[[bytes], None]) -> bool:
    """Bytes start..end of exactly this state of the object, in order; a broken stream goes on at the last byte.

    Answers whether the store encrypts the object with a key of its own: then its ETag is no digest of the bytes.
    """
    failures, opaque = 0, False
    while start < end:
        before = start
        broken: Exception | None = None
        try:
            body, opaque = _open(source, start, end)
            try:
                while start < end and (piece := body.read(min(_PIECE, end - start))):
                    write(piece)
                    start += len(piece)
            finally:
                if start < end:
                    body.close()  # not used again: bytes of this answer may still be under way
        except _BROKEN as cause:
            broken = cause
        failures = 0 if start > before else failures + 1
        if failures >= _PATIENCE:
            raise NotAvailable(
                f"{source.uri}: the transfer breaks again and again at byte {start} of {source.size}: {broken}",
                fix="Check the network; what has arrived is kept, the next attempt goes on from there.",
                details={"retry": True},
            ) from broken
        if start < end:
            time.sleep(min(0.1 * 2**failures, 5.0))
    return opaque


def _open(source: Object, start: int, end: int) -> tuple[Any, bool]:
    wanted = {} if (start, end) == (0, source.size) else {"Range": f"bytes={start}-{end - 1}"}
    with s3.explained(source.uri, "s3:GetObject"):
        answer = s3.client().get_object(**s3.exactly(source), **wanted)
    keyed = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer
    return answer["Body"], keyed


def _journal(part: Path) -> Path:
    return part.with_name(f"{part.name}.journal")
