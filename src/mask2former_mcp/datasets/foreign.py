"""Layouts that are not read here, told apart by their names: what a folder looks like, and how to make it fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mask2former_mcp.datasets.reference import holds_images
from mask2former_mcp.staging import archives

_LOOKED_AT = 1000  # entries of one folder


@dataclass(frozen=True, slots=True)
class Layout:
    """`what` it looks like, and what to do about it."""

    what: str
    fix: str


def recognised(folder: Path) -> Layout | None:
    """The first layout whose signs are there; None for an unknown folder, or one that cannot be read."""
    try:
        return next((layout for is_there, layout in _KNOWN if is_there(folder)), None)
    except OSError:
        return None


def _is_coco_release(folder: Path) -> bool:
    return _holds(folder / "annotations", "instances_", ".json") or _holds(folder / "annotations", "panoptic_", ".json")


def _is_voc(folder: Path) -> bool:
    return _holds(folder / "Annotations", "", ".xml") or _holds(folder, "", ".xml")


def _is_yolo(folder: Path) -> bool:
    named = any((folder / name).is_file() for name in ("data.yaml", "dataset.yaml", "classes.txt", "darknet.labels"))
    return named or _holds(folder / "labels", "", ".txt") or _holds(folder / "labels" / "train", "", ".txt")


def _is_packed(folder: Path) -> bool:
    """Nothing but archives, none of which is called as a part of a dataset is."""
    found = list(islice(_visible(folder), _LOOKED_AT))
    return bool(found) and all(path.is_file() and archives.is_archive(path.name) for path in found)


def _is_images(folder: Path) -> bool:
    return holds_images(folder) or ((folder / "images").is_dir() and holds_images(folder / "images"))


def _holds(folder: Path, start: str, end: str) -> bool:
    if not folder.is_dir():
        return False
    return any(p.name.startswith(start) and p.name.lower().endswith(end) for p in islice(_visible(folder), _LOOKED_AT))


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


_KNOWN: tuple[tuple[Callable[[Path], bool], Layout], ...] = (
    (
        _is_coco_release,
        Layout(
            "the official COCO release",
            "Make one folder for each split, with links: train/images -> train2017/, train/annotations.json -> "
            "annotations/instances_train2017.json, val/ likewise with val2017; then name the folder above.",
        ),
    ),
    (
        _is_voc,
        Layout(
            "Pascal VOC",
            "Convert it: its boxes do not train masks. The class masks of SegmentationClass/ become ADE (images/, "
            "masks/, annotations.jsonl, label_map.json), objects with polygons become COCO (annotations.json).",
        ),
    ),
    (
        _is_yolo,
        Layout(
            "YOLO",
            "Convert it: YOLO-seg polygons become COCO instances (annotations.json beside images/); boxes alone do not "
            "train masks.",
        ),
    ),
    (_is_packed, Layout("a packed dataset", "Unpack it first and name the folder that holds the annotations.")),
    (
        _is_images,
        Layout(
            "images without annotations",
            "Annotations are needed to train and to measure; inference works without them (inference_dataset).",
        ),
    ),
)
