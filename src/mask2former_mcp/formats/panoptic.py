"""COCO panoptic: a JSON file that names segments, and one PNG per image whose pixels hold segment ids.

A pixel's id is R + 256 G + 65536 B; id 0 is void (nobody said what it is).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask2former_mcp.formats import json_stream, label_png, records
from mask2former_mcp.formats.extents import Extent
from mask2former_mcp.formats.fault import FormatError, boolean, field, integer, text
from mask2former_mcp.formats.records import Category, ImageEntry

LARGEST_ID = (1 << 24) - 1
T = TypeVar("T")


class Segment(NamedTuple):
    id: int
    category_id: int
    iscrowd: bool = False


@dataclass(frozen=True, slots=True)
class Annotation:
    """The segments of one image. `iscrowd_missing` counts the segments that did not say (read as 0)."""

    image_id: int
    file_name: str
    segments: tuple[Segment, ...]
    iscrowd_missing: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated image. `size` is (width, height) as the JSON file says, or None."""

    image_id: int
    image: Path
    mask: Path
    segments: tuple[Segment, ...]
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class PanopticSet:
    categories: tuple[Category, ...]
    records: tuple[Record, ...]

    def masks(self, record: Record) -> NDArray[np.int32]:
        """[H, W] segment ids of the record's PNG. Raises FormatError."""
        return read_ids(record.mask)


def read(json_path: Path, img_dir: Path, panoptic_dir: Path) -> PanopticSet:
    """All annotated images in the order of `annotations`; files are not opened.

    Raises FormatError at the first record that breaks the format, repeats an id, or names an unknown image or category.
    """
    categories: dict[int, Category] = {}
    images: dict[int, ImageEntry] = {}
    annotations: dict[int, Annotation] = {}
    for key, entry in json_stream.entries(json_path):
        if key == "categories":
            category = records.category(entry, json_path, isthing_required=True)
            _add(categories, category.id, category, "category", json_path)
        elif key == "images":
            image = records.image(entry, json_path, size_required=False)
            _add(images, image.id, image, "image", json_path)
        elif key == "annotations":
            found = annotation(entry, json_path)
            _add(annotations, found.image_id, found, "annotation of image", json_path)
    for name, content in (("categories", categories), ("images", images), ("annotations", annotations)):
        if not content:
            raise FormatError("missing_key", f'"{name}" is missing or empty', file=json_path)
    return PanopticSet(
        tuple(categories.values()),
        tuple(_record(a, images, categories, json_path, img_dir, panoptic_dir) for a in annotations.values()),
    )


def annotation(entry: Any, file: Path) -> Annotation:
    """One element of `annotations`. Raises FormatError: missing key, bad value, duplicate segment id."""
    image_id = integer(entry, "image_id", file)
    name = records.relative(text(entry, "file_name", file, image_id), file, image_id)
    segments: list[Segment] = []
    seen: set[int] = set()
    missing = 0
    for raw in field(entry, "segments_info", list, file, image_id):  # type: ignore[attr-defined]
        segment_id = integer(raw, "id", file, image_id)
        if not 0 < segment_id <= LARGEST_ID:
            rule = f"a segment id must be in 1..{LARGEST_ID} (0 is void), found {segment_id}"
            raise FormatError("bad_value", rule, file=file, id=image_id)
        if segment_id in seen:
            raise FormatError(
                "duplicate_id", f"segment id {segment_id} occurs twice in one image", file=file, id=image_id
            )
        seen.add(segment_id)
        missing += "iscrowd" not in raw
        crowd = boolean(raw, "iscrowd", file, image_id) if "iscrowd" in raw else False
        segments.append(Segment(segment_id, integer(raw, "category_id", file, image_id), crowd))
    return Annotation(image_id, name, tuple(segments), missing)


def read_ids(path: Path) -> NDArray[np.int32]:
    """[H, W] int32 segment ids of a panoptic PNG; in a grey one the ids are the grey values, a palette is refused.

    Raises FormatError: `missing_file`, `unreadable`, `bad_value`.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "RGBA", "L"):
                rule = f"a panoptic mask must be an RGB PNG (id = R + 256 G + 65536 B), this one is {image.mode}"
                raise FormatError("bad_value", rule, file=path)
            pixels = np.asarray(image)
    except FileNotFoundError as cause:
        raise FormatError("missing_file", "the mask does not exist", file=path) from cause
    except FormatError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise FormatError("unreadable", f"not a readable image: {cause}", file=path) from cause
    if pixels.ndim == 2:
        return pixels.astype(np.int32)
    return decode_ids(pixels)


def is_grey(path: Path) -> bool:
    """Whether the ids of a panoptic PNG that was read are its grey values."""
    with Image.open(path) as image:
        return image.mode == "L"


def decode_ids(pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """[H, W, 3] RGB -> [H, W] ids."""
    red, green, blue = (pixels[..., c].astype(np.int32) for c in range(3))
    ids: NDArray[np.int32] = red + (green << 8) + (blue << 16)
    return ids


def encode_ids(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """[H, W] ids 0..2^24-1 -> [H, W, 3] RGB."""
    least, largest = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if least < 0 or largest > LARGEST_ID:
        raise ValueError(f"segment ids must be in 0..{LARGEST_ID}, found {least}..{largest}")
    pixels = np.zeros((*ids.shape, 3), dtype=np.uint8)
    for channel in range(-(-largest.bit_length() // 8)):  # most maps need only the first
        pixels[..., channel] = ids >> 8 * channel if channel else ids  # of which the lowest byte is kept
    return pixels


def write_ids(path: Path, ids: NDArray[Any]) -> None:
    """Writes [H, W] segment ids as an RGB PNG."""
    label_png.write(path, encode_ids(ids))


def segments_info(there: Mapping[int, Extent], segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """The JSON form of segments with `area` and `bbox` (x, y, w, h). there: the `extents` of their ids; segments that
    have none drop out."""
    return [
        {
            "id": segment.id,
            "category_id": segment.category_id,
            "iscrowd": int(segment.iscrowd),
            "area": extent.area,
            "bbox": [extent.left, extent.top, extent.width, extent.height],
        }
        for segment in segments
        if (extent := there.get(segment.id))
    ]


def write(
    path: Path,
    categories: Sequence[Category],
    images: Iterable[ImageEntry],
    annotations: Iterable[Mapping[str, Any]],
) -> None:
    """Writes the JSON file; `annotations` are {image_id, file_name, segments_info}."""
    content = {
        "images": [{"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in images],
        "annotations": list(annotations),
        "categories": [{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in categories],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def _add(into: dict[int, T], key: int, value: T, what: str, file: Path) -> None:
    if key in into:
        raise FormatError("duplicate_id", f"this {what} occurs twice", file=file, id=key)
    into[key] = value


def _record(
    found: Annotation,
    images: Mapping[int, ImageEntry],
    categories: Mapping[int, Category],
    file: Path,
    img_dir: Path,
    panoptic_dir: Path,
) -> Record:
    image = images.get(found.image_id)
    if image is None:
        raise FormatError(
            "unknown_image", "an annotation names an image that is not in images", file=file, id=found.image_id
        )
    for segment in found.segments:
        if segment.category_id not in categories:
            raise FormatError(
                "unknown_category", f"category {segment.category_id} is not in categories", file=file, id=found.image_id
            )
    size = None if image.width is None or image.height is None else (image.width, image.height)
    return Record(image.id, img_dir / image.file_name, panoptic_dir / found.file_name, found.segments, size)
