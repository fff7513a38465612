"""Archives to folders: safely, once, and complete or not at all.

What may come out, and how much, is decided in unpacking.py. Finished folders appear by one rename, with a mark beside
that says whether they may be trusted after a power cut; a lock keeps two processes from doing the same work.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from mask2former_mcp.staging import durable
from mask2former_mcp.staging.locks import locked
from mask2former_mcp.staging.unpacking import Limits, Progress, unpack

SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip")
MIRRORS = "cache/s3/folders"  # below the home


def stem(name: str) -> str:
    """`images.tar.gz` -> `images`; a name without an archive suffix is returned as it is."""
    lower = name.lower()
    return next((name[: -len(s)] for s in SUFFIXES if lower.endswith(s)), name)


def is_archive(name: str) -> bool:
    return stem(name) != name


def key(archive: Path) -> str:
    """16 hex digits that change with the archive's path, size or modification time.

    In a mirror of S3 the time stands for the object and its state, so that mirrors of several states share one place.
    """
    status = archive.stat()
    path = archive.absolute().as_posix()
    text = f"{'' if f'/{MIRRORS}/' in path else path}\0{status.st_size}\0{status.st_mtime_ns}"
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
    waiting: Callable[[], None] | None = None,
) -> Path:
    """Makes `destination` the archive's content and returns it; at once when it exists.

    A single root folder is taken off, repeatedly, until `expects` (a path that the annotations use) is found.
    `progress` receives (compressed bytes read, compressed bytes in all) and may raise to stop; `waiting` is called
    again and again while another process extracts it, and may raise as well.
    Raises DatasetError: not an archive, damaged, a refused member, over the limits, no space.
    """
    whole = destination.with_name(f".{destination.name}.whole")
    if _is_there(destination, whole):
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    with locked(destination.with_name(f".{destination.name}.lock"), waiting):
        if _is_there(destination, whole):
            return destination
        shutil.rmtree(destination, ignore_errors=True)  # that a power cut may have left holes in
        scratch = destination.with_name(f".{destination.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        scratch.mkdir()
        try:
            unpack(archive, scratch, limits or Limits(), progress)
            durable.mark(whole)
            _root(scratch, expects).rename(destination)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return destination


def _is_there(destination: Path, whole: Path) -> bool:
    return destination.is_dir() and durable.holds(whole)


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
