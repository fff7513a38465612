"""Archives to folders: safely, once, and complete or not at all.

Only plain files and folders come out of an archive. A member that is a link, a device, leaves the folder, or makes
the whole larger than the limits is refused by its name, and nothing is left behind. Finished folders appear by one
rename, so a folder that exists is whole; a lock keeps two processes from doing the same work.
"""

import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from mask2former_mcp.errors import DatasetError
from mask2former_mcp.staging.locks import locked

SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip")
_JUNK = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db"})
_PIECE = 1 << 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may become. Images hardly compress, so a large ratio means a bomb; small archives are exempt."""

    ratio: float = 200.0
    ratio_from_bytes: int = 256 << 20  # the ratio counts only past this size
    members: int = 10_000_000
    keep_free_bytes: int = 1 << 30  # of the disk


def stem(name: str) -> str:
    """`images.tar.gz` -> `images`; a name without an archive suffix is returned as it is."""
    lower = name.lower()
    return next((name[: -len(s)] for s in SUFFIXES if lower.endswith(s)), name)


def is_archive(name: str) -> bool:
    return stem(name) != name


def key(archive: Path) -> str:
    """16 hex digits that change with the archive's path, size or modification time."""
    status = archive.stat()
    text = f"{archive.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_place(archive: Path) -> str:
    """Where the archive's content lies below the home: `cache/archives/<key>/<stem>`."""
    return f"cache/archives/{key(archive)}/{stem(archive.name)}"


def together(archives: Sequence[Path]) -> str:
    """16 hex digits for several archives that share one folder in the cache."""
    return hashlib.sha256("".join(map(key, archives)).encode()).hexdigest()[:16]


def extract(
    archive: Path,
    destination: Path,
    *,
    limits: Limits | None = None,
    expects: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Makes `destination` the archive's content and returns it; at once when it exists.

    A single root folder is taken off, repeatedly, until `expects` (a path that the annotations use) is found.
    `progress` receives (compressed bytes read, compressed bytes in all) and may raise to stop.
    Raises DatasetError: not an archive, damaged, a refused member, over the limits, no space.
    """
    if destination.is_dir():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    with locked(destination.with_name(f".{destination.name}.lock")):
        if destination.is_dir():
            return destination
        scratch = destination.with_name(f".{destination.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        scratch.mkdir()
        try:
            _Extraction(archive, scratch, limits or Limits(), progress).run()
            _root(scratch, expects).rename(destination)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return destination


class _Extraction:
    """One archive on its way into one empty folder."""

    def __init__(self, archive: Path, folder: Path, limits: Limits, progress: Progress | None) -> None:
        self.archive, self.folder, self.limits, self.progress = archive, folder, limits, progress
        self.packed = self._packed_size()
        self.written = self.members = 0
        self.room = shutil.disk_usage(folder).free - limits.keep_free_bytes

    def run(self) -> None:
        try:
            with self.archive.open("rb") as raw:
                if zipfile.is_zipfile(raw):
                    self._zip(raw)
                else:
                    raw.seek(0)
                    self._tar(raw)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as cause:
            raise DatasetError(
                f"{self.archive} is damaged or not a tar or zip archive: {cause}",
                fix="Make the archive again, or put the extracted folder beside it.",
            ) from cause
        except OSError as cause:
            raise DatasetError(
                f"{self.archive} could not be extracted: {cause}", fix="Check the archive, the disk and its free space."
            ) from cause
        if not self.members:
            raise DatasetError(f"{self.archive} holds no files", fix="Make the archive again.")

    def _packed_size(self) -> int:
        try:
            return self.archive.stat().st_size
        except OSError as cause:
            raise DatasetError(f"{self.archive} cannot be read: {cause.strerror}", fix="Check the path.") from cause

    def _tar(self, raw: IO[bytes]) -> None:
        with tarfile.open(fileobj=raw, mode="r:*") as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    kind = "a link" if member.issym() or member.islnk() else "a device or special file"
                    raise self._refused(member.name, f"it is {kind}")
                target = self._target(member.name)
                tar.members = []  # type: ignore[attr-defined] # tarfile remembers each member; 100k of them would pile up
                if target is None or member.isdir():
                    continue
                source = tar.extractfile(member)
                if source is not None:
                    self._copy(source, target, member.name, member.size, raw)

    def _zip(self, raw: IO[bytes]) -> None:
        with zipfile.ZipFile(raw) as archive:
            for member in archive.infolist():
                mode = member.external_attr >> 16
                if mode & 0o170000 not in (0, 0o100000, 0o040000):
                    kind = "a link" if mode & 0o170000 == 0o120000 else "a device or special file"
                    raise self._refused(member.filename, f"it is {kind}")
                target = self._target(member.filename)
                if target is None or member.is_dir():
                    continue
                with archive.open(member) as source:
                    self._copy(source, target, member.filename, member.file_size, raw)

    def _target(self, name: str) -> Path | None:
        """Where a member goes; None for what archivers leave behind. Raises for names that leave the folder."""
        path = PurePosixPath(name)
        if path.is_absolute() or name[1:2] == ":" or "\\" in name or "\0" in name:
            raise self._refused(name, "its path is absolute or not portable")
        if ".." in path.parts:
            raise self._refused(name, 'its path leaves the folder ("..")')
        if any(part in _JUNK or part.startswith("._") for part in path.parts):
            return None
        return self.folder / path

    def _copy(self, source: IO[bytes], target: Path, name: str, size: int, raw: IO[bytes]) -> None:
        self.members += 1
        if self.members > self.limits.members:
            raise self._refused(name, f"there are more than {self.limits.members} files")
        self._admit(name, size)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            out = target.open("xb")
        except FileExistsError as cause:
            raise self._refused(name, "another member has the same name") from cause
        with out:
            while piece := source.read(_PIECE):
                self._admit(name, len(piece))
                out.write(piece)
                self.written += len(piece)
                if self.progress:
                    self.progress(min(raw.tell(), self.packed), self.packed)

    def _admit(self, name: str, more: int) -> None:
        total = self.written + more
        if total > self.limits.ratio_from_bytes and total > self.limits.ratio * self.packed:
            rule = f"with it the archive would grow more than {self.limits.ratio:g} times, as only a bomb does"
            raise self._refused(name, rule)
        if total > self.room:
            raise self._refused(name, f"the disk has room for {max(0, self.room) >> 20} MiB only")

    def _refused(self, name: str, reason: str) -> DatasetError:
        shown = "".join(c if c.isprintable() else "?" for c in name[:200])
        return DatasetError(
            f"{self.archive}: member '{shown}' is refused: {reason}",
            fix="Make the archive again from plain files and folders, or put the extracted folder beside it.",
        )


def _root(folder: Path, expects: str | None) -> Path:
    """The folder that holds what the annotations name; else the last one that is not alone in its parent."""
    current = folder
    while True:
        if expects is not None and (current / expects).exists():
            return current
        inside = list(current.iterdir())
        if len(inside) != 1 or not inside[0].is_dir():
            return current
        current = inside[0]
