"""An S3 prefix as a folder in the cache, in two steps: an outline for planning, filled when a job is prepared.

A mirror belongs to one state of the prefix: its name is a digest of every key, ETag and size below it. So a dataset
that changes gets another folder, a running job's folder never changes under it, and a Plan that names a mirror says
exactly which bytes it means. Files are hard links into the object cache; unchanged objects are never fetched twice.

In an outline only annotation files (`.json`, `.jsonl`) hold their bytes. Folders are there and empty; an archive
is an empty file of the right size and time, so that its name, state and key in the archive cache are already known;
images that lie directly below the prefix are empty files, so that it is seen to be a folder of images.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mask2former_mcp.errors import DatasetError, NotReady
from mask2former_mcp.staging import archives, s3
from mask2former_mcp.staging.cache import Cache, locked
from mask2former_mcp.staging.s3 import Object, Uri

DEADLINE_S = 40.0
_READ = (".json", ".jsonl")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_WINDOW = 4 * s3.THREADS  # transfers handed out at once: bounds memory for 100k objects
_FULL = ".filled"  # beside a folder whose every object is there
Progress = Callable[[int, int], None]  # bytes done, bytes in all; may raise to stop


@dataclass(frozen=True, slots=True)
class State:
    """What lies below a prefix now, by its path below it."""

    uri: Uri
    objects: dict[str, Object]

    @property
    def digest(self) -> str:
        text = "\n".join(f"{name}\0{o.etag}\0{o.size}" for name, o in sorted(self.objects.items()))
        return hashlib.sha256(f"{self.uri}\n{text}".encode()).hexdigest()[:24]

    def place(self, home: Path) -> Path:
        return home / "cache" / "s3" / "folders" / self.digest


def read_state(uri: Uri, *, deadline: float | None = None) -> State:
    """Lists the prefix. DatasetError when nothing is there, or a key cannot be a file name here."""
    objects: dict[str, Object] = {}
    start = len(uri.key) + 1 if uri.key else 0
    for found in s3.listing(uri):
        name = found.uri.key[start:]
        if not s3.is_plain(name):
            shown = "".join(c if c.isprintable() else "?" for c in name[:200])
            raise DatasetError(
                f"{uri}: the key '{shown}' cannot be a file in a folder", fix="Rename or remove that object."
            )
        objects[name] = found
        if deadline is not None and time.monotonic() > deadline:
            raise NotReady(
                f"{uri}: listing takes long, {len(objects)} objects so far",
                fix="Name a prefix that holds the dataset only, with images packed as images.tar.gz.",
            )
    if not objects:
        raise DatasetError(f"{uri} holds nothing", fix="Check bucket and prefix; S3 keys are case-sensitive.")
    folders = {str(parent) for name in objects for parent in PurePosixPath(name).parents}
    if clash := sorted(folders & objects.keys()):
        raise DatasetError(f"{uri}: '{clash[0]}' is a file and a folder at once", fix="Rename one of them.")
    return State(uri, objects)


def outline(uri: Uri, home: Path, *, deadline_s: float = DEADLINE_S) -> Path:
    """The prefix as a folder in which annotation files can be read. NotReady, with the bytes done, past the deadline:
    what has arrived is kept, so that the same call later gets further."""
    deadline = time.monotonic() + deadline_s
    state = read_state(uri, deadline=deadline)
    place = state.place(home)
    if not place.is_dir():
        _draw(state, place)
    wanted = {name: o for name, o in state.objects.items() if name.endswith(_READ) and not (place / name).exists()}
    total = sum(o.size for o in wanted.values())
    try:
        _fetch(Cache.of(home), wanted, place, lambda done, _: _stop_after(deadline, done, total))
    except _OutOfTime as cause:
        raise NotReady(
            f"reading annotations from {uri}: {cause.done >> 20} of {total >> 20} MiB",
            fix="Call the same thing again in a moment; what has arrived is kept.",
            details={"bytes_done": cause.done, "bytes_total": total},
        ) from cause
    os.utime(place)
    return place


def fill(
    uri: Uri, home: Path, parts: Sequence[str], *, expected: str | None = None, progress: Progress | None = None
) -> Path:
    """The mirror with these parts whole: file names, or folders (`images/`, with all that is below); "" is everything.

    `expected` is the digest that a Plan was made for: DatasetError when the prefix has changed since.
    """
    if expected is not None and _filled(home / "cache" / "s3" / "folders" / expected, parts):
        place = home / "cache" / "s3" / "folders" / expected
        os.utime(place)
        return place
    state = read_state(uri)
    if expected is not None and state.digest != expected:
        raise DatasetError(
            f"{uri} has changed since the plan was made", fix="Plan again, so that the plan says what runs."
        )
    place = state.place(home)
    if not place.is_dir():
        _draw(state, place)
    cache = Cache.of(home)
    with locked(place.with_name(f".{place.name}.lock")):
        for part in parts:
            if not _filled(place, [part]):
                wanted = {name: o for name, o in state.objects.items() if _belongs(name, part)}
                _room(place, sum(o.size for o in wanted.values() if not cache.has(o)))
                _fetch(cache, wanted, place, progress)
                _mark(place, part).touch()
    os.utime(place)
    cache.trim()
    return place


class _OutOfTime(Exception):
    def __init__(self, done: int) -> None:
        self.done = done


def _stop_after(deadline: float, done: int, total: int) -> None:
    if time.monotonic() > deadline and done < total:
        raise _OutOfTime(done)


def _draw(state: State, place: Path) -> None:
    """Folders, and archives as empty files of the right size and time."""
    scratch = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
    for name, found in state.objects.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if archives.is_archive(name):
            with path.open("wb") as file:
                file.truncate(found.size)
            os.utime(path, (found.modified, found.modified))
        elif "/" not in name and name.lower().endswith(_IMAGES):
            path.touch()
    try:
        scratch.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(scratch)  # another process was first


def _fetch(cache: Cache, wanted: dict[str, Object], place: Path, progress: Progress | None) -> None:
    """Links every object into the mirror, many at once."""
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
        if archives.is_archive(name):  # its key in the archive cache holds its time
            os.utime(target, (source.modified, source.modified))
        if known:
            count(source.size)

    with ThreadPoolExecutor(s3.THREADS) as pool:
        under_way = set()
        try:
            for name, source in wanted.items():
                under_way.add(pool.submit(one, name, source))
                if len(under_way) >= _WINDOW:
                    finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
            for future in under_way:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _belongs(name: str, part: str) -> bool:
    return name == part or part == "" or (part.endswith("/") and name.startswith(part))


def _filled(place: Path, parts: Sequence[str]) -> bool:
    return place.is_dir() and all(_mark(place, part).exists() or _mark(place, "").exists() for part in parts)


def _mark(place: Path, part: str) -> Path:
    name = hashlib.sha256(part.encode()).hexdigest()[:12]
    return place.with_name(f".{place.name}{_FULL}.{name}")


def _room(place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free
    if size > free - (1 << 30):
        raise DatasetError(
            f"{size >> 20} MiB are to be fetched, the disk has {free >> 20} MiB free",
            fix="Free space, or move the home with M2F_HOME.",
        )
