"""Opens the images and masks that annotations name, several at once, and compares them with what annotations say."""

import os
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from mask2former_mcp.datasets.problems import Problem, Problems
from mask2former_mcp.datasets.survey import Survey
from mask2former_mcp.formats import ade, images, json_stream, panoptic
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.formats.records import ImageEntry

Watch = Callable[[str, int, int], None]  # stage, done, total; may raise to stop
_SEED = 0  # a sample is the same sample every time
_WINDOW = 64  # files under way at once: bounds memory


@dataclass(frozen=True, slots=True)
class Roots:
    """The folders that file names are relative to, on this disk."""

    images: Path
    masks: Path | None = None


@dataclass(slots=True)
class Seen:
    """What one or more opened records showed. `classes` counts ADE images per class id."""

    problems: list[Problem] = field(default_factory=list)
    classes: Counter[int] = field(default_factory=Counter)

    def error(self, code: str, message: str, file: Path, id: int | str) -> None:
        self.problems.append(Problem(code, "error", message, str(file), id))

    def warning(self, code: str, message: str, file: Path, id: int | str) -> None:
        self.problems.append(Problem(code, "warning", message, str(file), id))

    def fault(self, fault: FormatError, id: int | str) -> None:
        self.problems.append(
            Problem(fault.code, "error", fault.reason, fault.file, fault.id if fault.id is not None else id)
        )


def open_all(found: Survey, roots: Roots, *, sample: int | None, watch: Watch) -> int:
    """Decodes every image and mask (or a seeded sample), adding to `found.problems`; returns how many records."""
    chosen = _chosen(found, sample)
    total = len(found.images) if chosen is None else len(chosen)
    classes: Counter[int] = Counter()
    done = 0
    for seen in _concurrently(_tasks(found, roots, chosen)):
        for problem in seen.problems:
            found.problems.add(problem)
        classes.update(seen.classes)
        done += 1
        watch("files", done, total)
    if found.layout.format == "ade":
        _ade_classes(found, classes, complete=chosen is None)
    return done


def open_folder(paths: list[Path], problems: Problems, *, sample: int | None, watch: Watch) -> int:
    """Decodes plain images (or a seeded sample of them); returns how many."""
    chosen = paths if sample is None or sample >= len(paths) else random.Random(_SEED).sample(paths, sample)
    for done, seen in enumerate(_concurrently(partial(_plain, path) for path in chosen), 1):
        for problem in seen.problems:
            problems.add(problem)
        watch("files", done, len(chosen))
    return len(chosen)


def absent(found: Survey, roots: Roots) -> Iterator[Path]:
    """The named files that do not exist; nothing is opened."""
    for entry in found.images.values():
        if not (roots.images / entry.file_name).is_file():
            yield roots.images / entry.file_name
    if roots.masks is None:
        return
    for _, name in _mask_names(found):
        if not (roots.masks / name).is_file():
            yield roots.masks / name


def _chosen(found: Survey, sample: int | None) -> frozenset[int] | None:
    if sample is None or sample >= len(found.images):
        return None
    usable = sorted(found.annotated & found.images.keys()) or sorted(found.images)
    return frozenset(random.Random(_SEED).sample(usable, min(sample, len(usable))))


def _tasks(found: Survey, roots: Roots, chosen: frozenset[int] | None) -> Iterator[Callable[[], Seen]]:
    layout = found.layout
    wanted = found.images.keys() if chosen is None else chosen
    if layout.format == "coco":
        for id_ in wanted:
            yield partial(_image, roots, found.images[id_])
    elif layout.format == "ade":
        known = frozenset(found.categories) | ade.VOID
        for number, name in _mask_names(found):
            if number in wanted:
                yield partial(_ade_pair, roots, found.images[number], name, known)
    else:
        unannotated = wanted - found.annotated
        for id_ in unannotated:
            yield partial(_image, roots, found.images[id_])
        for record in _panoptic_records(found):
            if record.image_id in wanted:
                yield partial(_panoptic_pair, roots, found.images[record.image_id], record)


def _panoptic_records(found: Survey) -> Iterator[panoptic.Annotation]:
    """The annotations once more, one by one: keeping them all would take a gigabyte. Broken ones are known already."""
    seen: set[int] = set()
    try:
        for key, entry in json_stream.entries(found.layout.annotations):
            if key != "annotations":
                continue
            try:
                record = panoptic.annotation(entry, found.layout.annotations)
            except FormatError:
                continue
            if record.image_id not in seen:
                seen.add(record.image_id)
                yield record
    except FormatError:
        return


def _mask_names(found: Survey) -> Iterator[tuple[int, str]]:
    if found.layout.format == "coco_panoptic":
        yield from ((r.image_id, r.file_name) for r in _panoptic_records(found))
    elif found.layout.format == "ade":
        for number, line in ade.lines(found.layout.annotations):
            if number in found.images:
                yield number, ade.pair(number, line, found.layout.annotations).mask


def _concurrently(tasks: Iterator[Callable[[], Seen]]) -> Iterator[Seen]:
    """Results in order. Threads: the decoders release the interpreter while they work."""
    pending: deque[Future[Seen]] = deque()
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        try:
            for task in tasks:
                pending.append(pool.submit(task))
                if len(pending) >= _WINDOW:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _plain(path: Path) -> Seen:
    seen = Seen()
    try:
        images.probe(path)
    except FormatError as fault:
        seen.fault(fault, path.name)
    return seen


def _probe(seen: Seen, path: Path, entry: ImageEntry) -> tuple[int, int] | None:
    try:
        size = images.probe(path)
    except FormatError as fault:
        seen.fault(fault, entry.id)
        return None
    if entry.width is not None and entry.height is not None and size != (entry.width, entry.height):
        said = (entry.width, entry.height)
        turned, fix = _turned(path, size, said)
        rule = f"the image is {size[0]} x {size[1]}{turned}, the annotations say {said[0]} x {said[1]}{fix}"
        seen.error("size_mismatch", rule, path, entry.id)
    return size


def _turned(image: Path, upright: tuple[int, int], other: tuple[int, int]) -> tuple[str, str]:
    """What to add to a mismatch, and what to do, where the other size is that of the image without its rotation."""
    if other == upright or images.stored_size(image) != other:
        return "", ""
    return (
        f" (after its EXIF rotation; as stored {other[0]} x {other[1]})",
        ": remove the EXIF orientation from the image, or annotate it upright",
    )


def _image(roots: Roots, entry: ImageEntry) -> Seen:
    seen = Seen()
    _probe(seen, roots.images / entry.file_name, entry)
    return seen


def _panoptic_pair(roots: Roots, entry: ImageEntry, record: panoptic.Annotation) -> Seen:
    seen = Seen()
    size = _probe(seen, roots.images / entry.file_name, entry)
    if roots.masks is None:
        return seen
    path = roots.masks / record.file_name
    try:
        ids = panoptic.read_ids(path)
    except FormatError as fault:
        seen.fault(fault, entry.id)
        return seen
    _same_size(seen, roots.images / entry.file_name, size, ids.shape, path, entry.id)
    present = set(np.unique(ids).tolist())
    listed = {s.id for s in record.segments}
    if lost := sorted(listed - present):
        grey = "; the PNG is grey, so its values are taken as ids" if panoptic.is_grey(path) else ""
        rule = f"segments {_few(lost)} are listed but have no pixel in the mask{grey}"
        seen.error("segment_missing", rule, path, entry.id)
    if extra := sorted(present - listed - {0}):
        seen.warning(
            "segment_unlisted", f"pixels of ids {_few(extra)} belong to no segment (read as void)", path, entry.id
        )
    return seen


def _ade_pair(roots: Roots, entry: ImageEntry, mask: str, known: frozenset[int]) -> Seen:
    seen = Seen()
    where = f"line {entry.id}"
    size = _probe(seen, roots.images / entry.file_name, entry)
    path = (roots.masks or roots.images) / mask
    try:
        classes = ade.read_classes(path)
    except FormatError as fault:
        seen.fault(fault, where)
        return seen
    _same_size(seen, roots.images / entry.file_name, size, classes.shape, path, where)
    present = set(np.unique(classes).tolist())
    if unknown := sorted(present - known):
        seen.error("unknown_category", f"classes {_few(unknown)} are not in the label map", path, where)
    seen.classes.update(present - ade.VOID)
    if not present - ade.VOID:
        seen.warning("no_segments", "the mask is void everywhere", path, where)
    return seen


def _same_size(
    seen: Seen, image: Path, size: tuple[int, int] | None, shape: tuple[int, ...], path: Path, id: int | str
) -> None:
    if size is not None and (shape[1], shape[0]) != size:
        turned, fix = _turned(image, size, (shape[1], shape[0]))
        rule = f"the mask is {shape[1]} x {shape[0]}, its image {size[0]} x {size[1]}{turned}{fix}"
        seen.error("size_mismatch", rule, path, id)


def _ade_classes(found: Survey, classes: Counter[int], *, complete: bool) -> None:
    """Only the masks know which classes an ADE set has; a sample proves nothing about those it did not meet."""
    found.per_class = Counter({c: n for c, n in classes.items() if c in found.categories})
    found.images_per_class = Counter(found.per_class)
    if complete:
        for category in found.categories.values():
            if not classes[category.id]:
                rule = f"class {category.name!r} has no pixel in any mask"
                found.problems.warning("unannotated_class", rule, found.layout.label_map, category.id)


def _few(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
