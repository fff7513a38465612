"""A seeded hold-out: one annotation file becomes two, over the same images, when nobody named validation data."""

import json
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats import ade, json_stream
from mask2former_mcp.formats.fault import FormatError, integer

FRACTION = 0.1


def sizes(images: int, fraction: float = FRACTION) -> tuple[int, int]:
    """(training, validation) images: at least one each. Raises DatasetError below two images."""
    if images < 2:
        raise DatasetError(
            f"a hold-out needs at least 2 annotated images, there are {images}",
            fix="Name an eval_dataset, or annotate more images.",
        )
    held = min(max(1, round(images * fraction)), images - 1)
    return images - held, held


def choose(ids: Collection[int], *, seed: int, fraction: float = FRACTION) -> frozenset[int]:
    """The held-out ids. The same ids and seed give the same choice, whatever their order."""
    _, held = sizes(len(ids), fraction)
    return frozenset(random.Random(seed).sample(sorted(ids), held))


def split(
    source: Path, format: str, train: Path, val: Path, *, seed: int, fraction: float = FRACTION
) -> tuple[int, int]:
    """Writes both files and returns their numbers of images. Reads the source twice, element by element.

    coco_panoptic: annotated images; coco: all images; ade: lines. Every other part of the file goes into both.
    Raises DatasetError when the source is broken or too small.
    """
    try:
        if format == "ade":
            return _split_lines(source, train, val, seed, fraction)
        ids = _image_ids(source, "annotations" if format == "coco_panoptic" else "images")
        held = choose(ids, seed=seed, fraction=fraction)
        _write(source, train, lambda image: image in ids and image not in held)
        _write(source, val, lambda image: image in held)
    except FormatError as cause:
        raise DatasetError(str(cause), fix="Repair the annotation file; check_dataset lists its problems.") from cause
    return len(ids) - len(held), len(held)


def _image_ids(source: Path, section: str) -> frozenset[int]:
    name = "image_id" if section == "annotations" else "id"
    return frozenset(integer(entry, name, source) for key, entry in json_stream.entries(source) if key == section)


def _write(source: Path, target: Path, keep: Callable[[int], bool]) -> None:
    """Copies the file, with the images and annotations of the kept image ids only."""
    with _replacing(target) as out:
        open_array: str | None = None
        first = True
        arrays = ("images", "annotations")
        rest: dict[str, Any] = {}
        out.write("{")
        for key, entry in json_stream.entries(source):
            if key not in arrays:
                _gather(rest, key, entry)
                continue
            if not keep(integer(entry, "id" if key == "images" else "image_id", source)):
                continue
            if key != open_array:
                out.write(("" if open_array is None else "],\n") + json.dumps(key) + ": [\n")
                open_array, first = key, True
            out.write(("" if first else ",\n") + json.dumps(entry))
            first = False
        out.write("" if open_array is None else "],\n")
        out.write('"held_out_from": ' + json.dumps(source.name))
        for key, value in rest.items():
            out.write(",\n" + json.dumps(key) + ": " + json.dumps(value))
        out.write("}\n")


def _gather(rest: dict[str, Any], key: str, entry: Any) -> None:
    """`entries` takes arrays apart; small ones (categories, licenses) are put together again here."""
    if key in ("categories", "licenses"):
        rest.setdefault(key, []).append(entry)
    elif key == "info":
        rest[key] = entry


def _split_lines(source: Path, train: Path, val: Path, seed: int, fraction: float) -> tuple[int, int]:
    lines = list(ade.lines(source))
    held = choose([number for number, _ in lines], seed=seed, fraction=fraction)
    for target, wanted in ((train, False), (val, True)):
        with _replacing(target) as out:
            out.writelines(_ended(line for number, line in lines if (number in held) is wanted))
    return len(lines) - len(held), len(held)


def _ended(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line.rstrip("\n") + "\n"


class _replacing:
    """A text file that takes its place only when it was written to the end."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.part = path, path.with_name(path.name + ".part")

    def __enter__(self) -> IO[str]:
        self.file = self.part.open("w", encoding="utf-8")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        if kind is None:
            self.part.replace(self.path)
        else:
            self.part.unlink(missing_ok=True)
