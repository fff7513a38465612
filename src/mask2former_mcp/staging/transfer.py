"""One object to one file: in ranges, several at once, going on where a broken transfer stopped, verified at the end.

Beside the unfinished file lies a journal of finished ranges with their MD5; a later process reads it and fetches only
the rest. The journal belongs to one state of the object (ETag and size): another state starts from nothing.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from mask2former_mcp.errors import DatasetError, NotAvailable
from mask2former_mcp.staging import s3
from mask2former_mcp.staging.s3 import Object

RANGE = 16 << 20  # bytes of one request, for objects that were not written in parts
_PIECE = 1 << 20
_PATIENCE = 6  # broken transfers in a row without a byte of progress
_BROKEN = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPError, ConnectionError, TimeoutError)
Progress = Callable[[int], None]  # more bytes arrived; may raise to stop (what is there stays for the next time)


def download(source: Object, target: Path, *, progress: Progress | None = None) -> None:
    """Fetches the object into `target`, which appears by one rename. DatasetError, NotAvailable, OSError."""
    part = target.with_name(f"{target.name}.part")
    if source.size <= RANGE:
        _small(source, part, progress)
    else:
        _Ranges(source, part, progress).run()
    part.replace(target)
    with suppress(FileNotFoundError):
        _journal(part).unlink()


def _small(source: Object, part: Path, progress: Progress | None) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with part.open("wb") as out:

        def write(piece: bytes) -> None:
            out.write(piece)
            digest.update(piece)
            if progress:
                progress(len(piece))

        _read(source, 0, source.size, write)
    if _is_md5(source.etag) and digest.hexdigest() != source.etag:
        part.unlink()
        raise _damaged(source)


@dataclass(slots=True)
class _Ranges:
    """Ranges of one object on their way into one file."""

    source: Object
    part: Path
    progress: Progress | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: dict[int, str] = field(default_factory=dict)  # offset -> MD5 of that range
    stop: threading.Event = field(default_factory=threading.Event)
    step: int = RANGE

    def run(self) -> None:
        self.step = _part_size(self.source)
        self._recover()
        rest = [offset for offset in range(0, self.source.size, self.step) if offset not in self.done]
        if self.progress and self.done:
            self.progress(min(len(self.done) * self.step, self.source.size))
        descriptor = os.open(self.part, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, self.source.size)
            with _journal(self.part).open("a", encoding="utf-8") as journal, ThreadPoolExecutor(s3.THREADS) as pool:
                futures = [
                    pool.submit(self._fetch, descriptor, offset, journal.write, journal.flush) for offset in rest
                ]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    self.stop.set()
                    pool.shutdown(cancel_futures=True)
                    raise
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._verify()

    def _recover(self) -> None:
        """The journal's first line says which state of the object it is about."""
        head = json.dumps([str(self.source.uri), self.source.etag, self.source.size, self.step])
        journal = _journal(self.part)
        if self.part.exists() and journal.exists():
            lines = journal.read_text(encoding="utf-8").splitlines()
            if lines and lines[0] == head:
                for line in lines[1:]:
                    offset, _, digest = line.partition(" ")
                    if offset.isdigit() and len(digest) == 32:  # a torn last line is fetched again
                        self.done[int(offset)] = digest
                if lines[-1] != head and len(lines[-1].partition(" ")[2]) != 32:
                    kept = [head, *(f"{o} {d}" for o, d in self.done.items())]
                    journal.write_text("\n".join(kept) + "\n", encoding="utf-8")
                return
        self.part.unlink(missing_ok=True)
        journal.write_text(head + "\n", encoding="utf-8")

    def _fetch(self, descriptor: int, offset: int, note: Callable[[str], object], flush: Callable[[], object]) -> None:
        position = offset
        digest = hashlib.md5(usedforsecurity=False)

        def write(piece: bytes) -> None:
            nonlocal position
            if self.stop.is_set():
                raise InterruptedError(f"{self.source.uri}: stopped")
            os.pwrite(descriptor, piece, position)
            digest.update(piece)
            position += len(piece)
            if self.progress:
                with self.lock:
                    self.progress(len(piece))

        _read(self.source, offset, min(offset + self.step, self.source.size), write)
        with self.lock:
            note(f"{offset} {digest.hexdigest()}\n")
            flush()
            self.done[offset] = digest.hexdigest()

    def _verify(self) -> None:
        etag = self.source.etag
        if _is_md5(etag):
            with self.part.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        elif "-" in etag and etag.rpartition("-")[2] == str(len(self.done)):
            joined = b"".join(bytes.fromhex(self.done[offset]) for offset in sorted(self.done))
            found = f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(self.done)}"
        else:
            return  # an ETag that is no digest of the bytes: every range had its length, more cannot be said
        if found != etag:
            self.part.unlink()
            _journal(self.part).unlink()
            raise _damaged(self.source)


def _read(source: Object, start: int, end: int, write: Callable[[bytes], None]) -> None:
    """Bytes start..end of exactly this state of the object, in order; a broken stream goes on at the last byte."""
    if start == end:
        return
    failures = 0
    while start < end:
        before = start
        broken: Exception | None = None
        try:
            with s3.explained(source.uri, "s3:GetObject"):
                arguments = {"VersionId": source.version} if source.version else {"IfMatch": f'"{source.etag}"'}
                answer = s3.client().get_object(
                    Bucket=source.uri.bucket, Key=source.uri.key, Range=f"bytes={start}-{end - 1}", **arguments
                )
            body = answer["Body"]
            try:
                while start < end and (piece := body.read(min(_PIECE, end - start))):
                    write(piece)
                    start += len(piece)
            finally:
                body.close() if start < end else body.release_conn() if hasattr(body, "release_conn") else body.close()
        except _BROKEN as cause:
            broken = cause
        failures = 0 if start > before else failures + 1
        if failures >= _PATIENCE:
            raise NotAvailable(
                f"{source.uri}: the transfer breaks again and again at byte {start} of {source.size}: {broken}",
                fix="Check the network; what has arrived is kept, the next attempt goes on from there.",
            ) from broken
        if start < end:
            time.sleep(min(0.1 * 2**failures, 5.0))


def _part_size(source: Object) -> int:
    """The size that the object was written in, where it was written in parts: then its ETag can be verified."""
    count = source.etag.rpartition("-")[2]
    if "-" not in source.etag or not count.isdigit():
        return RANGE
    with s3.explained(source.uri, "s3:GetObject"):
        first = s3.client().head_object(Bucket=source.uri.bucket, Key=source.uri.key, PartNumber=1)
    size = int(first["ContentLength"])
    return size if size > 0 and -(-source.size // size) == int(count) else RANGE


def _is_md5(etag: str) -> bool:
    return len(etag) == 32 and all(c in "0123456789abcdef" for c in etag)


def _damaged(source: Object) -> DatasetError:
    return DatasetError(
        f"{source.uri}: the bytes that arrived do not have the checksum {source.etag} that the store gives",
        fix="Try again; if it repeats, the object is damaged, or encrypted by a key that changes its ETag.",
    )


def _journal(part: Path) -> Path:
    return part.with_name(f"{part.name}.journal")
