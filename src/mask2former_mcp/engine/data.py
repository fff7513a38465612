"""Annotated images of the three formats, read into one form: an image and numbered segments.

A sample's segments lie in planes: [P, H, W] with 0 = nothing and k = segment k (1..T). Panoptic and ADE data need one
plane; COCO instances may overlap, so each goes to the first plane where it covers nothing else and stays whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mask2former_mcp.engine import classes as class_table
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.formats import ade, coco, images, panoptic
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.formats.label_map import Label
from mask2former_mcp.formats.records import Category
from mask2former_mcp.spec.dataset import Dataset, Split

Planes = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Truth:
    """Ground truth at the image's own size.

    planes [P, H, W]: segment numbers; labels [T]: class of each segment; crowd [T]: several objects under one mask.
    exhaustive: every pixel was annotated, so that one without a segment is void (and not just background).
    """

    planes: Planes
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    exhaustive: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.planes.shape[1], self.planes.shape[2]

    def class_map(self) -> NDArray[np.int64]:
        """[H, W] class of each pixel, 0 where void, crowd or not annotated; of overlapping instances the last wins."""
        return self.classes_at(self.planes)

    def classes_at(self, planes: Planes) -> NDArray[np.int64]:
        """The same for planes [P, h, w] read from these at other positions."""
        single = np.concatenate([[0], np.where(self.crowd, 0, np.arange(1, len(self.labels) + 1))])
        table = np.concatenate([[0], self.labels])
        return np.asarray(table[single[planes].max(0)], dtype=np.int64)

    def mask(self, segment: int) -> NDArray[np.bool_]:
        """[H, W] of segment k."""
        return np.asarray((self.planes == segment).any(0))


@dataclass(frozen=True, slots=True)
class Sample:
    """image [H, W, 3] uint8, upright RGB, and its truth."""

    image: NDArray[np.uint8]
    truth: Truth


class Source(Protocol):
    """A split that can be read one image at a time. Small enough to be copied into worker processes."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's file name, for messages."""

    def load(self, index: int) -> Sample:
        """Decodes image and masks. Raises FormatError naming the file."""


@dataclass(frozen=True)
class PanopticSource:
    records: tuple[panoptic.Record, ...]
    class_of: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        return str(self.records[index].image)

    def load(self, index: int) -> Sample:
        record = self.records[index]
        image = images.read(record.image)
        ids = panoptic.read_ids(record.mask)
        _same_size(image, ids.shape, record.mask)
        segments = [s for s in record.segments if s.category_id in self.class_of]
        return Sample(
            image,
            Truth(
                number(ids, [s.id for s in segments])[None],
                np.array([self.class_of[s.category_id] for s in segments], dtype=np.int64),
                np.array([s.iscrowd for s in segments], dtype=bool),
                exhaustive=True,
            ),
        )


@dataclass(frozen=True)
class InstanceSource:
    records: tuple[coco.Record, ...]
    class_of: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        return str(self.records[index].image)

    def load(self, index: int) -> Sample:
        record = self.records[index]
        image = images.read(record.image)
        width, height = record.size
        _same_size(image, (height, width), record.image)
        instances = [i for i in record.instances if i.category_id in self.class_of]
        masks = (i.mask(height, width) for i in instances)
        return Sample(
            image,
            Truth(
                pack(masks, height, width),
                np.array([self.class_of[i.category_id] for i in instances], dtype=np.int64),
                np.array([i.iscrowd for i in instances], dtype=bool),
                exhaustive=False,
            ),
        )


@dataclass(frozen=True)
class AdeSource:
    """One segment per class; pixel values 0 and 255 are void."""

    records: tuple[ade.Record, ...]
    class_of: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        return str(self.records[index].image)

    def load(self, index: int) -> Sample:
        record = self.records[index]
        image = images.read(record.image)
        values = ade.read_classes(record.mask)
        _same_size(image, values.shape, record.mask)
        present = [int(v) for v in np.unique(values) if int(v) in self.class_of and int(v) not in ade.VOID]
        return Sample(
            image,
            Truth(
                number(values, present)[None],
                np.array([self.class_of[v] for v in present], dtype=np.int64),
                np.zeros(len(present), dtype=bool),
                exhaustive=True,
            ),
        )


@dataclass(frozen=True, slots=True)
class Annotated:
    """A split with the classes that its labels mean."""

    source: Source
    classes: Classes


def open_split(split: Split, dataset: Dataset, *, num_classes: int, classes: Classes | None = None) -> Annotated:
    """Reads the annotation file of a split (images stay closed).

    classes: those that a network already has; the split's category ids must be among them. Without, they are the
    split's own categories. Raises ValueError (FormatError for the files), naming key, file and the right value.
    """
    labels = class_table.read_labels(dataset.label_map)
    own = classes
    if split.type == "coco_panoptic":
        needed = ("panoptic_json", "img_dir", "panoptic_dir")
        json_file, img_dir, panoptic_dir = (_given(split, key) for key in needed)
        found = panoptic.read(json_file, img_dir, panoptic_dir)
        own = _classes(own, found.categories, labels, dataset, num_classes, json_file)
        return _checked(PanopticSource(found.records, own.of_category), own, json_file)
    if split.type == "coco":
        json_file, img_dir = (_given(split, key) for key in ("instance_json", "img_dir"))
        instances = coco.read(json_file, img_dir)
        own = _classes(own, instances.categories, labels, dataset, num_classes, json_file)
        return _checked(InstanceSource(instances.records, own.of_category), own, json_file)
    annot_file, root = (_given(split, key) for key in ("annot_file", "root_dir"))
    if own is None and not labels and dataset.contiguous_id:
        raise ValueError("dataset.label_map is needed with type ade and contiguous_id: it says which ids exist")
    categories = class_table.as_categories(labels) if labels else _raw_categories(num_classes)
    own = _classes(own, categories, labels, dataset, num_classes, annot_file)
    return _checked(AdeSource(ade.read(annot_file, root), own.of_category), own, annot_file)


def number(ids: NDArray[np.int32], wanted: Sequence[int]) -> NDArray[np.uint16]:
    """[H, W] ids -> the position in `wanted` counted from 1, 0 for every other id."""
    if len(wanted) >= np.iinfo(np.uint16).max:
        raise ValueError(f"{len(wanted)} segments in one image are too many")
    order = np.argsort(wanted) if wanted else np.zeros(0, dtype=np.int64)
    ranked = np.asarray(wanted, dtype=np.int64)[order]
    if not ranked.size:
        return np.zeros(ids.shape, dtype=np.uint16)
    place = np.searchsorted(ranked, ids).clip(max=ranked.size - 1)
    return np.where(ranked[place] == ids, order[place] + 1, 0).astype(np.uint16)


def pack(masks: Iterable[NDArray[np.bool_]], height: int, width: int) -> Planes:
    """Masks [H, W], in order, into as few planes as first fit finds; at least one plane."""
    planes: list[NDArray[np.uint16]] = []
    for k, mask in enumerate(masks, 1):
        plane = next((p for p in planes if not p[mask].any()), None)
        if plane is None:
            plane = np.zeros((height, width), dtype=np.uint16)
            planes.append(plane)
        plane[mask] = k
    return np.stack(planes) if planes else np.zeros((1, height, width), dtype=np.uint16)


def _classes(
    known: Classes | None,
    categories: Sequence[Category],
    labels: Sequence[Label],
    dataset: Dataset,
    num_classes: int,
    file: Path,
) -> Classes:
    if known is None:
        return class_table.arrange(
            categories, labels, num_classes=num_classes, contiguous_id=dataset.contiguous_id, where=str(file)
        )
    of_category = known.of_category
    strangers = [c for c in categories if c.id not in of_category]
    if strangers:
        first = strangers[0]
        raise ValueError(
            f"{file}: category {first.id} ({first.name}) is not among the classes the network was made for"
            f" ({len(strangers)} such). Training and validation data must have the same categories."
        )
    return known


def _raw_categories(num_classes: int) -> tuple[Category, ...]:
    return tuple(Category(i, f"class_{i}") for i in range(1, num_classes + 1))


def _given(split: Split, key: str) -> Path:
    value = getattr(split, key)
    if not value:
        raise ValueError(f"dataset: {key} is empty, and type {split.type} reads it. Set it for this split.")
    return Path(value)


def _checked(source: Source, classes: Classes, file: Path) -> Annotated:
    if not len(source):
        raise ValueError(f"{file}: there is no image in it")
    return Annotated(source, classes)


def _same_size(image: NDArray[np.uint8], mask: tuple[int, ...], file: Path) -> None:
    if image.shape[:2] != mask[:2]:
        found, expected = (f"{s[1]} x {s[0]}" for s in (mask, image.shape))
        raise FormatError("size_mismatch", f"its size is {found}, the image is {expected}", file=file)
