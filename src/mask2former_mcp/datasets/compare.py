"""Two splits against each other: the same classes in the same order, and no image in both."""

import hashlib
from pathlib import Path

from mask2former_mcp.datasets.files import Roots, Watch
from mask2former_mcp.datasets.survey import Survey
from mask2former_mcp.formats.records import ImageEntry


def compare(one: Survey, roots: Roots | None, other: Survey, other_roots: Roots | None, watch: Watch) -> None:
    """Adds to `one.problems`. Contents are compared only between files of the same size, so little is read."""
    same_categories(one, other)
    if roots is None or other_roots is None:
        _names_only(one, other)
    else:
        _leakage(one, roots.images, other, other_roots.images, watch)


def same_categories(one: Survey, other: Survey) -> None:
    """A class is a position in `categories`: another order silently means other classes."""
    mine, theirs = list(one.categories.values()), list(other.categories.values())
    file, there = one.layout.annotations, other.layout.annotations
    if [c.id for c in mine] != [c.id for c in theirs]:
        ids, other_ids = {c.id for c in mine}, {c.id for c in theirs}
        if ids == other_ids:
            rule = f"the categories have another order than in {there}"
        else:
            rule = (
                f"categories differ from {there}: only here {_few(ids - other_ids)}, only there {_few(other_ids - ids)}"
            )
        one.problems.error("category_mismatch", rule, file)
        return
    for a, b in zip(mine, theirs, strict=True):
        if a.name != b.name or a.isthing != b.isthing:
            rule = f"{a.name!r}, isthing {int(a.isthing)} here; {b.name!r}, isthing {int(b.isthing)} in {there}"
            one.problems.error("category_mismatch", rule, file, a.id)


def _names_only(one: Survey, other: Survey) -> None:
    names = {entry.file_name for entry in other.images.values()}
    shared = [entry for entry in one.images.values() if entry.file_name in names]
    if shared:
        rule = f"{len(shared)} file name(s) are in both splits, {shared[0].file_name} first"
        one.problems.warning("same_name", rule, one.layout.annotations, shared[0].id)


def _leakage(one: Survey, images: Path, other: Survey, other_images: Path, watch: Watch) -> None:
    there = {entry.file_name: _size(other_images / entry.file_name) for entry in other.images.values()}
    by_size: dict[int, list[str]] = {}
    for name, size in there.items():
        if size is not None:
            by_size.setdefault(size, []).append(name)
    contents: dict[int, dict[bytes, str]] = {}  # size -> digest -> the first file there that has it
    namesakes: list[ImageEntry] = []  # the same name, another image
    for done, entry in enumerate(one.images.values(), 1):
        watch("comparing", done, len(one.images))
        path = images / entry.file_name
        size = _size(path)
        twin = None
        if size is not None and size in by_size:
            if size not in contents:
                contents[size] = {}
                for name in by_size[size]:
                    watch("comparing", done, len(one.images))
                    contents[size].setdefault(_digest(other_images / name), name)
            twin = contents[size].get(_digest(path))
        if twin is not None:
            one.problems.error("leakage", f"the same image is in the other split as {twin}", path, entry.id)
        elif entry.file_name in there:
            namesakes.append(entry)
    if namesakes:
        first = namesakes[0]
        rule = f"{len(namesakes)} file name(s) stand for another image in the other split, {first.file_name} first"
        one.problems.warning("same_name", rule, images / first.file_name, first.id)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _few(ids: set[int]) -> str:
    shown = ", ".join(map(str, sorted(ids)[:8]))
    return f"{shown}{', ...' if len(ids) > 8 else ''}" or "none"
