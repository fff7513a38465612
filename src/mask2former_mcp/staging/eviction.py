"""What leaves the S3 cache: mirrors that were not used for longest, with their objects and the content of their
archives, until the rest is in bounds.

A mirror stays while a live job may read it (whoever trims says which those are) and for an hour after each use, so
that what a check or a fresh Plan has just looked at is still there. The bound gives way to both.
"""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mask2former_mcp.staging import archives
from mask2former_mcp.staging.durable import BLOCK
from mask2former_mcp.staging.locks import locked_if_free

GRACE_S = 3600.0
_STALE_S = 7 * 86_400.0  # a broken transfer that nobody went on with


@dataclass(frozen=True, slots=True)
class Bound:
    """`limit` bytes for all that was fetched or extracted; `in_use` names the mirrors (folder names) of live jobs, or
    answers None where that is not known: then every mirror stays."""

    limit: int
    in_use: Callable[[], Collection[str] | None]
    grace_s: float = GRACE_S


def trim(home: Path, bound: Bound, incoming: int = 0) -> int:
    """Makes room for `incoming` more bytes; returns the bytes freed. Done by one process at a time, others go on."""
    root = home / "cache" / "s3"
    root.mkdir(parents=True, exist_ok=True)
    with locked_if_free(root / ".trim.lock") as mine:
        return _trim(home, root, bound, incoming) if mine else 0


def _trim(home: Path, root: Path, bound: Bound, incoming: int) -> int:
    _sweep(home, root)
    excess = _size([root, *_all_extracted(home, root)]) + incoming - bound.limit
    freed = 0
    if excess > 0:
        freed = _drop_orphans(root, excess)
    if freed < excess and (protected := bound.in_use()) is not None:
        for mirror in _oldest_first(root):
            if freed >= excess:
                break
            if mirror.name not in protected:
                freed += _remove(home, mirror, bound.grace_s) + _drop_orphans(root, excess - freed)
    return freed


def _size(folders: Iterable[Path]) -> int:
    """Bytes on the disk, a linked file counted once."""
    seen: dict[tuple[int, int], int] = {}
    for path in (path for folder in folders for path in _files(folder)):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        seen[status.st_dev, status.st_ino] = status.st_blocks * BLOCK
    return sum(seen.values())


def _sweep(home: Path, root: Path) -> None:
    """What killed processes left: folders half drawn or half removed, and archives half extracted."""
    for path in (root / "folders").glob(".*"):
        if path.is_dir() and time.time() - _used(path) > GRACE_S:
            shutil.rmtree(path, ignore_errors=True)
    for path in (path for kind in ("archives", "ade") for path in (home / "cache" / kind).glob("*/.*.part")):
        with locked_if_free(path.with_suffix(".lock")) as mine:
            if mine:
                shutil.rmtree(path, ignore_errors=True)


def _oldest_first(root: Path) -> list[Path]:
    found = [path for path in (root / "folders").glob("*") if not path.name.startswith(".")]
    return sorted(found, key=_used)


def _used(mirror: Path) -> float:
    try:
        return mirror.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _drop_orphans(root: Path, wanted: int) -> int:
    """Removes objects that no mirror links, and forgotten transfers, until so many bytes are free."""
    freed = 0
    for path in (root / "objects").glob("*/*"):
        if freed >= wanted:
            break
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if _is_forgotten(path, status) or _is_orphan(path, status):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.whole").unlink(missing_ok=True)
            freed += status.st_blocks * BLOCK
    return freed


def _is_orphan(path: Path, status: os.stat_result) -> bool:
    return status.st_nlink == 1 and "." not in path.name


def _is_forgotten(path: Path, status: os.stat_result) -> bool:
    return ".part" in path.name and time.time() - status.st_mtime > _STALE_S


def _remove(home: Path, mirror: Path, grace_s: float) -> int:
    """Takes a mirror away, and what was extracted for it alone, unless it is being filled or was used just now."""
    with (
        locked_if_free(mirror.with_name(f".{mirror.name}.filling")) as idle,
        locked_if_free(mirror.with_name(f".{mirror.name}.lock")) as mine,
    ):
        if not (idle and mine) or time.time() - _used(mirror) < grace_s:
            return 0
        alone = set(_extracted(home, mirror))
        if alone:
            alone -= _all_extracted(home, mirror.parent.parent, but=mirror)
        freed = _size(alone)
        for place in alone:
            shutil.rmtree(place, ignore_errors=True)
        for mark in mirror.parent.glob(f".{mirror.name}.filled.*"):
            mark.unlink(missing_ok=True)
        gone = mirror.with_name(f".{mirror.name}.gone")
        mirror.rename(gone)
        freed += sum(s.st_blocks * BLOCK for s in (path.lstat() for path in _files(gone)) if s.st_nlink == 1)
        shutil.rmtree(gone, ignore_errors=True)
        return freed


def _all_extracted(home: Path, root: Path, but: Path | None = None) -> set[Path]:
    return {place for mirror in _oldest_first(root) if mirror != but for place in _extracted(home, mirror)}


def _extracted(home: Path, mirror: Path) -> Iterator[Path]:
    """Where the content of a mirror's archives lies."""
    packed = [path for path in _files(mirror) if archives.is_archive(path.name)]
    for path in packed:
        yield (home / archives.cache_place(path)).parent
    for images in (path for path in packed if archives.stem(path.name) == "images"):
        masks = [path for path in packed if path.parent == images.parent and archives.stem(path.name) == "masks"]
        for together in ([images, *masks], [images], masks):
            yield home / "cache" / "ade" / archives.together(together)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)
