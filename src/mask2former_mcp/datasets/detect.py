"""Which format a dataset folder holds, and whether it is divided into train/ and val/."""

import os
from pathlib import Path

from mask2former_mcp.datasets import foreign
from mask2former_mcp.datasets.reference import DatasetRef, contents, find
from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats.names import ALSO_CALLED, ANNOTATIONS


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
    known = foreign.recognised(ref.folder())
    looks = f"; it looks like {known.what}" if known else ""
    raise DatasetError(
        f"{ref.uri} holds no annotation file of a known format{looks}; it holds: {contents(ref.folder()) or 'nothing'}",
        fix=(f"{known.fix} " if known else "")
        + "Name the file annotations_panoptic.json (COCO panoptic), annotations.json (COCO instances) or "
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
    if os.path.isdir(path / "train") and (val := _validation(path)) is not None and not annotated(ref):
        return ref.child("train"), ref.child(val)
    beside = _validation(path.parent) if path.name == "train" else None
    if beside is not None and (ref.kind == "local" or ref.inside):
        return ref, ref.beside(beside)
    return None


def train_alone(ref: DatasetRef) -> DatasetRef | None:
    """The train/ of a folder that holds nothing else to train on or to measure with; None for any other folder."""
    if (
        (ref.kind == "s3" and ref.mirror is None)
        or not os.path.isdir(ref.path / "train")
        or annotated(ref)
        or split(ref) is not None
    ):
        return None
    return ref.child("train")


def _validation(folder: Path) -> str | None:
    """What the validation part of this folder is called."""
    return next((name for name in ("val", *ALSO_CALLED["val"]) if os.path.isdir(folder / name)), None)
