"""One archive on its way into one empty folder. Only plain files and folders come out.

Everything that is read out of an archive counts, also what is thrown away (headers, what archivers leave behind): so an
archive that grows without end is stopped wherever it grows, and `progress` may stop any of it. It is read to its last
byte, because that is where gzip, bzip2 and xz keep their checksums.
"""

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mask2former_mcp.errors import DatasetError

Progress = Callable[[int, int], None]
_JUNK = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db"})
_PIECE = 1 << 20
_HEADER = 2 * _PIECE  # bytes read in a row without a member, or a piece of one: headers take a few kB
_ENTRY = 46 + 512  # bytes of a member in a zip's table of contents: the fixed ones, a long path and extra fields
_PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {  # by how such a file begins
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open, b"": io.BufferedReader,
}  # fmt: skip
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError,
    RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may become. Images hardly compress, so a large ratio means a bomb; small archives are exempt."""

    ratio: float = 200.0
    ratio_from_bytes: int = 256 << 20  # the ratio counts only past this size
    members: int = 2_000_000  # folders and what is thrown away included
    keep_free_bytes: int = 1 << 30  # of the disk


def unpack(archive: Path, folder: Path, limits: Limits, progress: Progress | None) -> None:
    """DatasetError: not an archive, damaged, a refused member, over the limits, no space, no files."""
    unpacking = _Unpacking(archive, folder, limits, progress)
    try:
        unpacking.run()
    except _DAMAGE as cause:
        raise _damaged(archive, cause) from cause
    except OSError as cause:
        if cause.errno is None:  # of gzip and bzip2, not of the disk
            raise _damaged(archive, cause) from cause
        raise DatasetError(
            f"{archive} could not be extracted: {cause}", fix="Check the archive, the disk and its free space."
        ) from cause
    if not unpacking.files:
        raise DatasetError(f"{archive} holds no files", fix="Make the archive again.")


class _Unpacking:
    def __init__(self, archive: Path, folder: Path, limits: Limits, progress: Progress | None) -> None:
        self.archive, self.folder, self.limits, self.progress = archive, folder, limits, progress
        try:
            self.packed = archive.stat().st_size
        except OSError as cause:
            raise DatasetError(f"{archive} cannot be read: {cause.strerror}", fix="Check the path.") from cause
        self.member = "the first"  # the name of the last one that was seen
        self.files = self.members = self.grown = self.written = 0
        self.room = shutil.disk_usage(folder).free - limits.keep_free_bytes

    def run(self) -> None:
        with self.archive.open("rb", buffering=0) as raw:
            if zipfile.is_zipfile(raw):
                self._zip(raw)
                return
            raw.seek(0)
            begins = raw.read(6)
            raw.seek(0)
            opened = next(opener for magic, opener in _PACKED.items() if begins.startswith(magic))
            with opened(raw) as stream:
                self._tar(_Onwards(stream, lambda more: self._grow(more, raw), self._refused))

    def _tar(self, stream: "_Onwards") -> None:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                stream.idle = 0
                tar.members = []  # type: ignore[attr-defined] # tarfile remembers each member; 100k of them would pile up
                kind = "a link" if member.issym() or member.islnk() else "a device or special file"
                target = self._enter(member.name, None if member.isfile() or member.isdir() else kind)
                if target is None or member.isdir():
                    continue
                source = tar.extractfile(member)
                if source is not None:
                    self._copy(source, target, member.size, stream.used)
        stream.finish()

    def _zip(self, raw: io.FileIO) -> None:
        table = max(self.limits.members * _ENTRY, _HEADER)  # zipfile reads all of it before anybody may look
        with zipfile.ZipFile(_Bounded(raw, table)) as archive:
            for member in archive.infolist():
                mode = member.external_attr >> 16
                kind = None
                if mode & 0o170000 not in (0, 0o100000, 0o040000):
                    kind = "a link" if mode & 0o170000 == 0o120000 else "a device or special file"
                elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    kind = "packed by another method than deflate"  # zipfile unpacks others without any bound
                target = self._enter(member.filename, kind)
                if target is None or member.is_dir():
                    continue
                with archive.open(member) as source:
                    self._copy(source, target, member.file_size, lambda more: self._grow(more, raw))

    def _enter(self, name: str, kind: str | None) -> Path | None:
        """Where a member goes; None for what archivers leave behind. `kind`: of what has no place in a folder."""
        self.member = name
        self.members += 1
        if self.members > self.limits.members:
            raise self._refused(f"there are more than {self.limits.members} files and folders")
        if kind is not None:
            raise self._refused(f"it is {kind}")
        path = PurePosixPath(name)
        if path.is_absolute() or name[1:2] == ":" or "\\" in name or "\0" in name:
            raise self._refused("its path is absolute or not portable")
        if ".." in path.parts:
            raise self._refused('its path leaves the folder ("..")')
        if any(part in _JUNK or part.startswith("._") for part in path.parts):
            return None
        return self.folder / path

    def _copy(self, source: IO[bytes], target: Path, size: int, told: Callable[[int], None]) -> None:
        self.files += 1
        self._admit(self.grown + size)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            out = target.open("xb")
        except (FileExistsError, NotADirectoryError) as cause:
            raise self._refused("another member has the same name, or that of its folder") from cause
        with out:
            while piece := source.read(_PIECE):
                self.written += len(piece)
                self._admit(self.written)
                out.write(piece)
                told(len(piece))

    def _grow(self, more: int, raw: io.FileIO) -> None:
        """So many more bytes came out of the archive."""
        self.grown += more
        self._admit(self.grown)
        if self.progress:
            self.progress(min(raw.tell(), self.packed), self.packed)

    def _admit(self, total: int) -> None:
        if total > self.limits.ratio_from_bytes and total > self.limits.ratio * self.packed:
            raise self._refused(
                f"with it the archive would grow more than {self.limits.ratio:g} times, as only a bomb does"
            )
        if total > self.room:
            raise self._refused(f"the disk has room for {max(0, self.room) >> 20} MiB only")

    def _refused(self, reason: str) -> DatasetError:
        shown = "".join(c if c.isprintable() else "?" for c in self.member[:200])
        return DatasetError(
            f"{self.archive}: member '{shown}' is refused: {reason}",
            fix="Make the archive again from plain files and folders, or put the extracted folder beside it.",
        )


class _Onwards(io.RawIOBase):
    """The bytes of a tar as tarfile wants them, read once from the first to the last. `grow` hears of all of them."""

    def __init__(self, stream: IO[bytes], grow: Callable[[int], None], refused: Callable[[str], DatasetError]) -> None:
        super().__init__()
        self._stream, self._grow, self._refused = stream, grow, refused
        self._place = 0
        self._last = b""
        self.idle = 0

    def read(self, size: int = -1, /) -> bytes:
        self.idle += size
        if size < 0 or self.idle > _HEADER:
            raise self._refused(f"a header after it is larger than {_HEADER >> 20} MiB")
        return self._take(size)

    def used(self, _: int) -> None:
        self.idle = 0

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET or place < self._place:
            raise tarfile.ReadError("a member lies before the one that it follows")
        while self._place < place and self._take(min(_PIECE, place - self._place)):
            pass
        return self._place

    def finish(self) -> None:
        """What tarfile took for the end must be one: it stops at a damaged header as well."""
        if self._last.strip(b"\0"):
            raise tarfile.ReadError("a header is damaged")
        while self._take(_PIECE):
            pass

    def _take(self, size: int) -> bytes:
        self._last = self._stream.read(size)
        self._place += len(self._last)
        self._grow(len(self._last))
        return self._last


class _Bounded(io.BufferedReader):
    """A file of which nobody reads too much at once."""

    def __init__(self, raw: io.RawIOBase, limit: int) -> None:
        super().__init__(raw)
        self._limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._limit:
            raise zipfile.BadZipFile(f"its table of contents takes more than {self._limit >> 20} MiB")
        return super().read(size)


def _damaged(archive: Path, cause: Exception) -> DatasetError:
    return DatasetError(
        f"{archive} is damaged or not a tar or zip archive: {cause}",
        fix="Make the archive again, or put the extracted folder beside it.",
    )
