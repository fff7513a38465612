"""What the annotations alone say about a dataset: counts, classes, hashes. Fit for a Plan, cached by file state."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mask2former_mcp.datasets import background
from mask2former_mcp.datasets.layout import Layout
from mask2former_mcp.datasets.problems import Problem
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.datasets.survey import survey
from mask2former_mcp.errors import DatasetError, NotReady
from mask2former_mcp.formats.names import LABEL_MAPS

_VERSION = 3  # of the cached form
NAMED = 10_000  # file names that are kept: enough to see that a folder is the wrong one
DEADLINE_S = 40.0


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """`images` is what an epoch counts (annotated images for panoptic); `categories` are (id, name, isthing) in order.

    `hashes` maps the annotation file's and label map's names to their sha256. `errors` and `warnings` count all
    problems; `problems` shows at most 20. `files` are the first image files that are named, relative to their folder.
    """

    format: str
    num_categories: int
    max_category_id: int
    categories: tuple[tuple[int, str, bool], ...]
    images: int
    annotations: int
    hashes: dict[str, str]
    label_map: tuple[tuple[int, str, bool], ...]
    problems: tuple[Problem, ...] = ()
    errors: int = 0
    warnings: int = 0
    files: tuple[str, ...] = ()


def num_classes(facts: DatasetFacts, contiguous_id: bool) -> int:
    """The smallest right `model.sem_seg_head.num_classes`: classes in order, or room for the largest raw id."""
    return facts.num_categories if contiguous_id else facts.max_category_id


def facts(
    ref: DatasetRef, format: str, *, home: Path | None = None, deadline_s: float | None = DEADLINE_S
) -> DatasetFacts:
    """Reads annotation file and label map (nothing else), or their cached facts.

    Past the deadline (with a home) reading goes on in the background and NotReady says how far it is; the same call
    later finds the result. Raises DatasetError when the annotation file is missing, or holds no usable class or image.
    """
    layout = Layout.of(ref, format)
    cached = None if home is None else home / "cache" / "facts" / f"{_state(layout)}.json"
    if cached is not None and (known := _load(cached)) is not None:
        return known
    stop = None if deadline_s is None or home is None else _stop_at(time.monotonic() + deadline_s)
    try:
        found = read(layout, progress=stop)
    except background.OutOfTime as cause:
        assert home is not None  # without a home nothing stops the reading
        size = layout.annotations.stat().st_size
        request = {"kind": "facts", "dataset": ref.uri, "format": format}
        background.find(request, home).take()  # raises what made an earlier attempt fail
        work = background.start(request, home)
        done = int(work.progress().get("done", 0))
        raise NotReady(
            f"reading {layout.annotations} goes on in the background: {done >> 20} of {size >> 20} MiB",
            fix="Call the same thing again in a moment.",
            details={"bytes_done": done, "bytes_total": size},
        ) from cause
    if cached is not None:
        with contextlib.suppress(OSError):  # a home that cannot be written costs time, not the Plan
            _store(cached, found)
    return found


def read(layout: Layout, *, progress: Callable[[int], None] | None = None) -> DatasetFacts:
    """The facts themselves. `progress` receives the characters read and may raise to stop."""
    found = survey(layout, progress=progress)
    shown = found.problems.shown()
    if not found.categories or not found.records:
        first = next((p for p in shown if p.severity == "error"), None)
        what = "classes" if not found.categories else "annotated images"
        reason = f": {first.message}" if first else ""
        raise DatasetError(
            f"{layout.annotations} holds no {what}{reason}",
            fix=f"Repair the file{f' or add {LABEL_MAPS[layout.format]}' if layout.format == 'ade' else ''}; "
            "check_dataset lists every problem.",
        )
    files = [layout.annotations, *([layout.label_map] if layout.label_map else [])]
    return DatasetFacts(
        format=layout.format,
        num_categories=len(found.categories),
        max_category_id=found.largest_id,
        categories=tuple((c.id, c.name, c.isthing) for c in found.categories.values()),
        images=found.records,
        annotations=found.annotations,
        hashes={p.name: _sha256(p) for p in files},
        label_map=tuple((label.id, label.name, label.isthing) for label in found.labels),
        problems=shown,
        errors=found.problems.errors,
        warnings=found.problems.warnings,
        files=tuple(entry.file_name for entry in islice(found.images.values(), NAMED)),
    )


def absent(known: DatasetFacts, folder: Path) -> list[str]:
    """Those of `known.files` that do not lie below the folder: one listing for each folder that they name."""
    listed: dict[str, frozenset[str]] = {}
    lost = []
    for name in known.files:
        below, _, leaf = name.rpartition("/")
        if below not in listed:
            try:
                listed[below] = frozenset(os.listdir(folder / below))
            except OSError:
                listed[below] = frozenset()
        if leaf not in listed[below]:
            lost.append(name)
    return lost


def remember(ref: DatasetRef, format: str, home: Path, progress: Callable[[int], None]) -> dict[str, Any]:
    """The background's part: read without a deadline and put the result into the cache."""
    layout = Layout.of(ref, format)
    found = read(layout, progress=progress)
    _store(home / "cache" / "facts" / f"{_state(layout)}.json", found)
    return {"images": found.images}


def _state(layout: Layout) -> str:
    """Changes with the path, size or time of a file that was read."""
    parts = [str(_VERSION), layout.format]
    for path in (layout.annotations, layout.label_map):
        status = path.stat() if path else None
        parts.append("-" if status is None else f"{path}\0{status.st_size}\0{status.st_mtime_ns}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stop_at(when: float) -> Callable[[int], None]:
    def check(_: int) -> None:
        if time.monotonic() > when:
            raise background.OutOfTime

    return check


def _load(path: Path) -> DatasetFacts | None:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    for key in ("categories", "label_map"):
        raw[key] = tuple((id_, name, isthing) for id_, name, isthing in raw[key])
    raw["files"] = tuple(raw["files"])
    raw["problems"] = tuple(Problem(**p) for p in raw["problems"])
    return DatasetFacts(**raw)


def _store(path: Path, found: DatasetFacts) -> None:
    background.write_json(path, asdict(found))
