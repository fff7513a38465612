"""COCO instances: images, categories, and one annotation per object with polygons or run lengths."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former_mcp.formats import json_stream, records, rle
from mask2former_mcp.formats.fault import FormatError, boolean, integer
from mask2former_mcp.formats.records import Category, ImageEntry

Polygons = tuple[NDArray[np.float32], ...]


class BoxOnly(FormatError):
    """An annotation without a mask: no segmentation, or an empty one."""

    def __init__(self, file: Path, id: int) -> None:
        super().__init__(
            "missing_key",
            'the annotation has only a box: its "segmentation" is missing or empty, and segmentation needs masks',
            file=file,
            id=id,
        )


@dataclass(frozen=True, slots=True)
class Instance:
    """One object. `segmentation` is a tuple of flat x, y polygons (float32, compact in memory) or run lengths."""

    id: int
    image_id: int
    category_id: int
    segmentation: Polygons | rle.Rle
    iscrowd: bool = False
    iscrowd_missing: bool = False

    def mask(self, height: int, width: int) -> rle.Mask:
        """[H, W] bool. Raises ValueError when run lengths have another size."""
        if isinstance(self.segmentation, tuple):
            return rle.fill(self.segmentation, height, width)
        if list(self.segmentation["size"]) != [height, width]:
            raise ValueError(
                f"run lengths are for {self.segmentation['size']}, the image is [{height}, {width}]"
                f" (annotation {self.id})"
            )
        return rle.decode(self.segmentation)


@dataclass(frozen=True, slots=True)
class Record:
    """One image with its objects (maybe none). `size` is (width, height) as the JSON file says."""

    image_id: int
    image: Path
    size: tuple[int, int]
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class InstanceSet:
    categories: tuple[Category, ...]
    records: tuple[Record, ...]

    def masks(self, record: Record) -> NDArray[np.bool_]:
        """[N, H, W] bool, one per instance in file order. Raises ValueError."""
        width, height = record.size
        found = [instance.mask(height, width) for instance in record.instances]
        return np.stack(found) if found else np.zeros((0, height, width), dtype=bool)


def read(json_path: Path, img_dir: Path) -> InstanceSet:
    """All images in file order; image files are not opened.

    Raises FormatError at the first record that breaks the format, repeats an id, or names an unknown image or category.
    """
    categories: dict[int, Category] = {}
    images: dict[int, ImageEntry] = {}
    objects: dict[int, list[Instance]] = {}
    seen: set[int] = set()
    for key, entry in json_stream.entries(json_path):
        if key == "categories":
            category = records.category(entry, json_path, isthing_required=False)
            if category.id in categories:
                raise FormatError("duplicate_id", "this category occurs twice", file=json_path, id=category.id)
            categories[category.id] = category
        elif key == "images":
            image = records.image(entry, json_path, size_required=True)
            if image.id in images:
                raise FormatError("duplicate_id", "this image occurs twice", file=json_path, id=image.id)
            images[image.id] = image
        elif key == "annotations":
            found = instance(entry, json_path)
            if found.id in seen:
                raise FormatError("duplicate_id", "this annotation occurs twice", file=json_path, id=found.id)
            seen.add(found.id)
            objects.setdefault(found.image_id, []).append(found)
    for name, content in (("categories", categories), ("images", images)):
        if not content:
            raise FormatError("missing_key", f'"{name}" is missing or empty', file=json_path)
    _known(objects, images, categories, json_path)
    return InstanceSet(
        tuple(categories.values()),
        tuple(
            Record(i.id, img_dir / i.file_name, (i.width or 0, i.height or 0), tuple(objects.get(i.id, ())))
            for i in images.values()
        ),
    )


def instance(entry: Any, file: Path) -> Instance:
    """One element of `annotations`. Raises FormatError: missing key, bad value; BoxOnly without a mask."""
    id_ = integer(entry, "id", file)
    if entry.get("segmentation") in (None, []):
        raise BoxOnly(file, id_)
    return Instance(
        id_,
        integer(entry, "image_id", file, id_),
        integer(entry, "category_id", file, id_),
        _segmentation(entry["segmentation"], file, id_),
        boolean(entry, "iscrowd", file, id_) if "iscrowd" in entry else False,
        "iscrowd" not in entry,
    )


def write(
    path: Path,
    categories: Sequence[Category],
    images: Iterable[ImageEntry],
    annotations: Iterable[Mapping[str, Any]],
) -> None:
    """Writes the JSON file; `annotations` are {id, image_id, category_id, segmentation, area, bbox, iscrowd}."""
    content = {
        "images": [{"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in images],
        "annotations": list(annotations),
        "categories": [{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in categories],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def _segmentation(value: Any, file: Path, id_: int) -> Polygons | rle.Rle:
    if isinstance(value, list):
        try:
            polygons = tuple(np.asarray(p, dtype=np.float32) for p in value)
        except (TypeError, ValueError) as cause:
            raise FormatError(
                "bad_value", "a polygon must be a flat list of numbers x0, y0, x1, y1, ...", file=file, id=id_
            ) from cause
        if not polygons or any(p.ndim != 1 or p.size < 6 or p.size % 2 for p in polygons):
            raise FormatError(
                "bad_value", "a polygon needs at least 3 points, written as x, y pairs", file=file, id=id_
            )
        return polygons
    if isinstance(value, dict) and isinstance(value.get("size"), list) and isinstance(value.get("counts"), str | list):
        found: rle.Rle = {"size": value["size"], "counts": value["counts"]}
        try:
            height, width = value["size"]
            covered = int(rle.runs(found).sum())
            if covered != height * width:
                raise ValueError(f"run lengths cover {covered} pixels, the size has {height * width}")
        except (TypeError, ValueError) as cause:
            raise FormatError("bad_value", f"bad run lengths: {cause}", file=file, id=id_) from cause
        return found
    raise FormatError(
        "bad_value", f'"segmentation" must be polygons or {{size, counts}}, found {value!r:.60}', file=file, id=id_
    )


def _known(
    objects: Mapping[int, list[Instance]],
    images: Mapping[int, ImageEntry],
    categories: Mapping[int, Category],
    file: Path,
) -> None:
    for image_id, found in objects.items():
        if image_id not in images:
            raise FormatError("unknown_image", f"image {image_id} is not in images", file=file, id=found[0].id)
        for one in found:
            if one.category_id not in categories:
                raise FormatError(
                    "unknown_category", f"category {one.category_id} is not in categories", file=file, id=one.id
                )
