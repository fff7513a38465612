"""Which format a dataset folder holds, and whether it is divided into train/ and val/."""

import os

from mask2former_mcp.datasets.reference import DatasetRef, contents, find
from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats.names import ANNOTATIONS


def detect_format(ref: DatasetRef) -> str:
    """coco_panoptic, coco or ade, by the annotation file; panoptic wins where several lie side by side.

    A folder that only holds train/ is judged by that. Raises DatasetError naming what is there.
    """
    for format, name in ANNOTATIONS.items():
        if find(ref, name) is not None:
            return format
    train = ref.child("train")
    if train.path.is_dir():
        return detect_format(train)
    raise DatasetError(
        f"{ref.uri} holds no annotation file of a known format; it holds: {contents(ref.folder()) or 'nothing'}",
        fix="Name the file annotations_panoptic.json (COCO panoptic), annotations.json (COCO instances) or "
        "annotations.jsonl (ADE), or name the folder that holds it.",
    )


def annotated(ref: DatasetRef) -> bool:
    """True when an annotation file of any format lies directly in the folder."""
    return any(find(ref, name) is not None for name in ANNOTATIONS.values())


def split(ref: DatasetRef) -> tuple[DatasetRef, DatasetRef] | None:
    """(train, val) when the folder holds train/ and val/, or is a train/ with a val/ beside it; else None."""
    if ref.kind == "s3" and ref.mirror is None:
        return None
    path = ref.path  # whether it can be read at all is not asked here: os.path.isdir says no where Path.is_dir raises
    if os.path.isdir(path / "train") and os.path.isdir(path / "val") and not annotated(ref):
        return ref.child("train"), ref.child("val")
    beside = path.parent / "val"
    if path.name == "train" and os.path.isdir(beside) and (ref.kind == "local" or ref.inside):
        return ref, ref.beside("val")
    return None
