"""An S3 prefix as a folder in the cache, in two steps: an outline for planning, filled when a job is prepared.

A mirror belongs to one state of the prefix: its name is a digest of every key, ETag and size below it. So a dataset
that changes gets another folder, a running job's folder never changes under it, and a Plan that names a mirror says
exactly which bytes it means. Files are hard links into the object cache; unchanged objects are never fetched twice.

In an outline only annotation files (`.json`, `.jsonl`) hold their bytes. Folders are there and empty; an archive is
an empty file of the right size and stamp, so that its name, state and key in the archive cache are already known;
images that lie directly below the prefix are empty files, so that it is seen to be a folder of images.

A mirror may also hold a few named objects of a prefix only (`only`): a checkpoint and what lies beside it.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from mask2former_mcp.errors import DatasetError, NotReady
from mask2former_mcp.staging import archives, durable, eviction, s3, state, transfer
from mask2former_mcp.staging.cache import Cache
from mask2former_mcp.staging.eviction import Bound
from mask2former_mcp.staging.locks import locked
from mask2former_mcp.staging.s3 import Object
from mask2former_mcp.staging.state import State
from mask2former_mcp.staging.uri import Uri

DEADLINE_S = 40.0
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_WINDOW = 4 * s3.OBJECTS  # transfers handed out at once: bounds memory for 100k objects
_FULL = ".filled"  # beside a folder whose every object is there
Progress = Callable[[int, int], None]  # bytes done, bytes in all; may raise to stop


def outline(uri: Uri, home: Path, *, only: Sequence[str] = (), deadline_s: float = DEADLINE_S) -> Path:
    """The prefix as a folder in which annotation files can be read. NotReady, with the bytes done, past the deadline:
    what has arrived is kept, so that the same call later gets further."""
    deadline = time.monotonic() + deadline_s
    now = state.read(uri, only=only, deadline=deadline)
    place = _drawn(now, home)
    wanted = {name: o for name, o in now.objects.items() if now.is_read(name) and not (place / name).exists()}
    total = sum(o.size for o in wanted.values())
    try:
        _fetch(Cache.of(home), wanted, place, lambda done, _: _stop_after(deadline, done, total), deadline)
    except _OutOfTime as cause:
        raise NotReady(
            f"reading annotations from {uri}: {cause.done >> 20} of {total >> 20} MiB",
            fix="Call the same thing again in a moment; what has arrived is kept.",
            details={"bytes_done": cause.done, "bytes_total": total},
        ) from cause
    return place


def fill(
    uri: Uri,
    home: Path,
    parts: Sequence[str],
    *,
    only: Sequence[str] = (),
    expected: str | None = None,
    progress: Progress | None = None,
    waiting: Callable[[], None] | None = None,
    bound: Bound | None = None,
) -> Path:
    """The mirror with these parts whole: file names, or folders (`images/`, with all that is below); "" is everything.

    `expected` is the digest that a Plan was made for: DatasetError when the prefix has changed since. `waiting` is
    called again and again while another process fills it, and may raise. `bound`: what is not used makes room first.
    """
    if expected is not None:
        known = folders(home) / expected
        with locked(_beside(known, "lock")):
            if _filled(known, parts):
                os.utime(known)
                return known
    now = state.read(uri, only=only)
    if expected is not None and now.digest != expected:
        raise DatasetError(
            f"{uri} has changed since the plan was made", fix="Plan again, so that the plan says what runs."
        )
    place = _drawn(now, home)
    cache = Cache.of(home)
    with locked(_beside(place, "filling"), waiting):
        wanted = {name: o for name, o in now.objects.items() if any(_belongs(name, part) for part in parts)}
        incoming = sum(cache.missing(o) for o in wanted.values())
        if bound is not None and incoming:
            eviction.trim(home, bound, incoming)
        _room(place, incoming)
        for part in parts:
            if not _filled(place, [part]):
                _fetch(cache, {name: o for name, o in wanted.items() if _belongs(name, part)}, place, progress)
                durable.mark(_mark(place, part))
        os.utime(place)
    return place


def folders(home: Path) -> Path:
    """Where the mirrors lie, each named by the digest of its state."""
    return home / archives.MIRRORS


class _OutOfTime(Exception):
    def __init__(self, done: int) -> None:
        self.done = done


def _stop_after(deadline: float, done: int, total: int) -> None:
    if time.monotonic() > deadline and done < total:
        raise _OutOfTime(done)


def _drawn(now: State, home: Path) -> Path:
    """The mirror's folder, drawn if it is not there, and marked as used. The lock is held for a moment only."""
    place = folders(home) / now.digest
    with locked(_beside(place, "lock")):
        if not place.is_dir():
            _draw(now, place)
        os.utime(place)
    return place


def _draw(now: State, place: Path) -> None:
    """Folders, and archives (and a named object) as empty files of the right size and stamp."""
    scratch = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    for name, found in now.objects.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if archives.is_archive(name) or name in now.only[:1]:
            with path.open("wb") as file:
                file.truncate(found.size)
            _stamp(path, found)
        elif not now.only and "/" not in name and name.lower().endswith(_IMAGES):
            path.touch()
    scratch.rename(place)


def _fetch(
    cache: Cache, wanted: dict[str, Object], place: Path, progress: Progress | None, deadline: float | None = None
) -> None:
    """Links every object into the mirror, many at once. Past the deadline, _OutOfTime even if the store is mute."""
    lock = threading.Lock()
    done, total = 0, sum(o.size for o in wanted.values())

    def count(more: int) -> None:
        nonlocal done
        with lock:
            done += more
            if progress:
                progress(done, total)

    def one(name: str, source: Object) -> None:
        known = cache.has(source)
        target = place / name
        cache.link(source, target, None if known else count)
        if archives.is_archive(name):
            _stamp(target, source)
        if known:
            count(source.size)

    def settle(under_way: set[Future[None]]) -> set[Future[None]]:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        finished, rest = wait(under_way, timeout=patience, return_when=FIRST_COMPLETED)
        if not finished:
            raise _OutOfTime(done)
        for future in finished:
            future.result()
        return rest

    for folder in {(place / name).parent for name in wanted}:
        folder.mkdir(parents=True, exist_ok=True)
    small, large = pools = (ThreadPoolExecutor(s3.OBJECTS), ThreadPoolExecutor(2))  # a large one has threads of its own
    under_way: set[Future[None]] = set()
    try:
        for name, source in wanted.items():
            under_way.add((large if source.size > transfer.RANGE else small).submit(one, name, source))
            if len(under_way) >= _WINDOW:
                under_way = settle(under_way)
        while under_way:
            under_way = settle(under_way)
    except BaseException as cause:
        for pool in pools:
            pool.shutdown(wait=not isinstance(cause, _OutOfTime), cancel_futures=True)
        raise
    for pool in pools:
        pool.shutdown()


def _stamp(path: Path, source: Object) -> None:
    """A time that stands for the object and its state: the key in the archive cache is made of it. All mirrors that
    share the file agree on it, whenever the same bytes were uploaded."""
    digest = hashlib.sha256(f"{source.uri}\0{source.etag}".encode()).digest()
    seconds, nanoseconds = int.from_bytes(digest[:4]) >> 1, int.from_bytes(digest[4:8]) % 1_000_000_000
    time_ns = seconds * 1_000_000_000 + nanoseconds
    os.utime(path, ns=(time_ns, time_ns))


def _belongs(name: str, part: str) -> bool:
    return name == part or part == "" or (part.endswith("/") and name.startswith(part))


def _filled(place: Path, parts: Sequence[str]) -> bool:
    return place.is_dir() and all(
        durable.holds(_mark(place, part)) or durable.holds(_mark(place, "")) for part in parts
    )


def _mark(place: Path, part: str) -> Path:
    name = hashlib.sha256(part.encode()).hexdigest()[:12]
    return place.with_name(f".{place.name}{_FULL}.{name}")


def _beside(place: Path, kind: str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    return place.with_name(f".{place.name}.{kind}")


def _room(place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free
    if size > free - (1 << 30):
        raise DatasetError(
            f"{size >> 20} MiB are to be fetched, the disk has {free >> 20} MiB free",
            fix="Free space, or move the home with M2F_HOME.",
        )
