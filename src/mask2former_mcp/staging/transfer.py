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
from typing import Any

from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from mask2former_mcp.errors import DatasetError, NotAvailable, NotReady
from mask2former_mcp.staging import s3
from mask2former_mcp.staging.s3 import Object

RANGE = 16 << 20  # bytes of one request, for objects that were not written in parts
_PIECE = 1 << 20
_UNHASHED = "-" * 32  # in the journal: the file is hashed as a whole
_PATIENCE = 6  # broken transfers in a row without a byte of progress
_BROKEN = (
    IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPError, ConnectionError, TimeoutError, NotReady,
)  # fmt: skip
Progress = Callable[[int], None]  # more bytes arrived; may raise to stop (what is there stays for the next time)


def download(source: Object, target: Path, *, progress: Progress | None = None) -> None:
    """Fetches the object into `target`, which appears by one rename. DatasetError, NotAvailable, OSError.

    Of a large object (over RANGE) one process at a time: what an earlier one left is gone on with.
    """
    if source.size <= RANGE:
        part = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.part")
        _small(source, part, progress)
        part.replace(target)
        return
    part = target.with_name(f"{target.name}.part")
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

        opaque = _read(source, 0, source.size, write)
    if _is_md5(source.etag) and not opaque and digest.hexdigest() != source.etag:
        part.unlink()
        raise _damaged(source)


@dataclass(slots=True)
class _Ranges:
    """Ranges of one object on their way into one file."""

    source: Object
    part: Path
    progress: Progress | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: dict[int, str] = field(default_factory=dict)  # offset -> MD5 of that range; "" where the whole is hashed
    stop: threading.Event = field(default_factory=threading.Event)
    step: int = RANGE
    opaque: bool = False  # the store encrypts with a key, so that the ETag is no digest of the bytes

    def run(self) -> None:
        self.step = _part_size(self.source)
        self._recover()
        rest = [offset for offset in range(0, self.source.size, self.step) if offset not in self.done]
        if self.progress and self.done:
            self.progress(sum(min(self.step, self.source.size - offset) for offset in self.done))
        descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o644)
        found = None
        try:
            os.ftruncate(descriptor, self.source.size)
            whole = _Whole(descriptor, self) if _is_md5(self.source.etag) else None
            try:
                self._fetch_all(descriptor, rest)
            except BaseException:
                self.stop.set()
                raise
            finally:
                found = whole.result() if whole else None
        finally:
            os.close(descriptor)
        self._verify(found)

    def _fetch_all(self, descriptor: int, rest: list[int]) -> None:
        with _journal(self.part).open("a", encoding="utf-8") as journal, ThreadPoolExecutor(s3.THREADS) as pool:

            def one(offset: int) -> None:
                digest = self._fetch(descriptor, offset)
                with self.lock:
                    journal.write(f"{offset} {digest or _UNHASHED}\n")
                    journal.flush()
                    self.done[offset] = digest

            futures = [pool.submit(one, offset) for offset in rest]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

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
                        self.done[int(offset)] = "" if digest == _UNHASHED else digest
                kept = [head, *(f"{o} {d or _UNHASHED}" for o, d in self.done.items())]
                journal.write_text("\n".join(kept) + "\n", encoding="utf-8")
                return
        self.part.unlink(missing_ok=True)
        journal.write_text(head + "\n", encoding="utf-8")

    def _fetch(self, descriptor: int, offset: int) -> str:
        position = offset
        digest = None if _is_md5(self.source.etag) else hashlib.md5(usedforsecurity=False)

        def write(piece: bytes) -> None:
            nonlocal position
            if self.stop.is_set():
                raise InterruptedError(f"{self.source.uri}: stopped")
            os.pwrite(descriptor, piece, position)
            if digest:
                digest.update(piece)
            position += len(piece)
            if self.progress:
                with self.lock:
                    self.progress(len(piece))

        self.opaque |= _read(self.source, offset, min(offset + self.step, self.source.size), write)
        return digest.hexdigest() if digest else ""

    def _verify(self, whole: str | None) -> None:
        etag = self.source.etag
        if self.opaque:
            return
        if whole is not None:
            found = whole
        elif "-" in etag and etag.rpartition("-")[2] == str(len(self.done)):
            joined = b"".join(bytes.fromhex(self.done[offset]) for offset in sorted(self.done))
            found = f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(self.done)}"
        else:
            return  # an ETag that is no digest of the bytes: every range had its length, more cannot be said
        if found != etag:
            self.part.unlink()
            _journal(self.part).unlink()
            raise _damaged(self.source)


class _Whole:
    """The MD5 of a file that is being filled: follows the ranges in order, so that it is known soon after the last."""

    def __init__(self, descriptor: int, ranges: _Ranges) -> None:
        self._descriptor, self._ranges = descriptor, ranges
        self._digest = hashlib.md5(usedforsecurity=False)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Of a stopped transfer, of no meaning."""
        self._thread.join()
        return self._digest.hexdigest()

    def _follow(self) -> None:
        size, step = self._ranges.source.size, self._ranges.step
        for offset in range(0, size, step):
            while offset not in self._ranges.done:
                if self._ranges.stop.wait(0.02):
                    return
            for start in range(offset, min(offset + step, size), _PIECE):
                self._digest.update(os.pread(self._descriptor, min(_PIECE, offset + step - start), start))


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
            ) from broken
        if start < end:
            time.sleep(min(0.1 * 2**failures, 5.0))
    return opaque


def _open(source: Object, start: int, end: int) -> tuple[Any, bool]:
    arguments = {"VersionId": source.version} if source.version else {"IfMatch": f'"{source.etag}"'}
    if (start, end) != (0, source.size):
        arguments["Range"] = f"bytes={start}-{end - 1}"
    with s3.explained(source.uri, "s3:GetObject"):
        answer = s3.client().get_object(Bucket=source.uri.bucket, Key=source.uri.key, **arguments)
    keyed = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer
    return answer["Body"], keyed


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
