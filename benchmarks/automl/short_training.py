"""A real training that takes seconds: the engine, in this process, on a data set drawn from a seed.

A set is 48 training and 32 validation images of the demo's scenes, SIZE pixels square, with its own start: the preset
is made for these very scenes, so a search from its rates has nothing to find. On somebody's data the resolved rates
are off, and how far is drawn, as in the stand-in: the learning rate up to `off` decades either way of the preset's,
the backbone's multiplier up to as many below its 1. With off = 0 a set starts from the preset.

The network is `mini` with one block a stage, half as wide, and three decoder layers; 6 epochs of 12 steps with a batch
of 4 from scratch, Warmuppoly. The value is mIoU on the validation images, the best of three validations. Equal knobs
give the equal value on one device; a learning rate 1 % higher gives another, as two seeds do.

What NVIDIA's packaged ranges propose is put into the spec as it is, but for resolutions: theirs stand around a default
of 640 pixels where this data has SIZE, so they are scaled by that. Networks of 50 layers and 1024 channels really are
trained; on a CPU core one takes minutes. What the engine refuses or ends (a spec that is illegal, a network that
cannot be, a loss that is no number) is a failed trial: no value.
"""

import contextlib
import csv
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mask2former_mcp import bundle
from mask2former_mcp.automl import derive
from mask2former_mcp.automl.space import Space
from mask2former_mcp.demo import scenes
from mask2former_mcp.engine import train
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import load

SIZE, THEIR_SIZE, SMALLEST = 64, 640, 32
LR, MULTIPLIER = "train.optim.lr", "train.optim.backbone_multiplier"
RESOLUTIONS = tuple(f"dataset.augmentation.{name}" for name in ("train_max_size", "test_min_size", "test_max_size"))
SMALL: Mapping[str, Any] = {
    "model.backbone.swin.embed_dim": 24,
    "model.backbone.swin.depths": [1, 1, 1, 1],
    "model.mask_former.num_object_queries": 12,
    "model.mask_former.dec_layers": 3,
    "model.sem_seg_head.num_classes": 13,
    "dataset.augmentation.train_crop_size": [SIZE, SIZE],
    "dataset.augmentation.train_min_size": [SIZE],
    "dataset.augmentation.test_min_size": SIZE,
    "dataset.train.batch_size": 4,
    "dataset.val.batch_size": 16,
    "train.num_epochs": 6,
    "train.validation_interval": 2,
    "train.checkpoint_interval": 6,
}


class Training:
    """The objective of one data set. `resolved`: the flat spec of a plain training; `space`: ours around it."""

    def __init__(self, folder: Path, seed: int, off: float) -> None:
        data = scenes.make(folder / f"set-{seed}", train=48, val=32, test=0, size=SIZE, seed=seed, workers=1)
        packaged = bundle.load()
        preset = {**dotted.flatten(packaged.template("train")), **packaged.presets["mini"], **SMALL, **_places(data)}
        random = np.random.default_rng([4, seed])
        rates = {LR: preset[LR] * 10 ** random.uniform(-off, off), MULTIPLIER: 10 ** random.uniform(-off, 0)}
        self.resolved: dict[str, Any] = {**preset, **rates, "train.seed": seed}
        self.space: Space = derive.derive(packaged.schema("train"), dotted.unflatten(self.resolved))

    def value(self, knobs: Mapping[str, Any]) -> tuple[float | None, str]:
        """Best validation mIoU, or None and why there is none."""
        try:
            spec = load("train", dotted.unflatten({**self.resolved, **_plain(knobs)}))
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                train.run(spec, Path(folder))
                rows = list(csv.DictReader((Path(folder) / "metrics.csv").read_text(encoding="utf-8").splitlines()))
        except (ValueError, FloatingPointError, MemoryError, RuntimeError) as reason:
            return None, str(reason)
        measured = [float(row["mIoU"]) for row in rows if row["mIoU"]]
        return (max(measured), "") if measured else (None, "no validation has a mIoU")


def their_knobs(proposal: Mapping[str, Any]) -> dict[str, Any]:
    """A proposal of NVIDIA's for images of SIZE pixels."""
    scaled = {key: max(SMALLEST, round(proposal[key] * SIZE / THEIR_SIZE)) for key in RESOLUTIONS if key in proposal}
    return {**proposal, **scaled}


def _plain(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Without NumPy's numbers, which are no YAML."""
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in knobs.items()}


def _places(data: Path) -> dict[str, Any]:
    places: dict[str, Any] = {"dataset.label_map": str(data / "train" / "label_map_panoptic.json")}
    for split in ("train", "val"):
        places |= {
            f"dataset.{split}.type": "coco_panoptic",
            f"dataset.{split}.img_dir": str(data / split / "images"),
            f"dataset.{split}.panoptic_json": str(data / split / "annotations_panoptic.json"),
            f"dataset.{split}.panoptic_dir": str(data / split / "images_panoptic"),
            f"dataset.{split}.num_workers": 0,
        }
    return places
