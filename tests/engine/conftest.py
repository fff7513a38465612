"""A tiny data set made with numpy, and specs of a tiny network over it: what the engine's tests share."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mask2former_mcp.engine import session
from mask2former_mcp.formats import panoptic, rle
from mask2former_mcp.formats.extents import extents
from mask2former_mcp.formats.panoptic import Segment
from mask2former_mcp.formats.records import Category, ImageEntry
from mask2former_mcp.spec import dotted

# Without a GPU the kernels run in Triton's interpreter, which has to be chosen before anything imports them.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

os.environ["OMP_NUM_THREADS"] = "1"  # read by the verbs; the machine is shared
torch.set_num_threads(1)

CATEGORIES = (Category(3, "disc", True), Category(5, "box", True), Category(9, "ground", False))
COLORS = {3: (200, 60, 40), 5: (40, 90, 210), 9: (70, 120, 60)}
SIDE, LARGEST_SEGMENT = 64, 8

TINY: dict[str, Any] = {
    "model.backbone.swin.embed_dim": 24,
    "model.backbone.swin.depths": [1, 1, 1, 1],
    "model.backbone.swin.num_heads": [1, 2, 4, 8],
    "model.backbone.swin.window_size": 4,
    "model.sem_seg_head.convs_dim": 32,
    "model.sem_seg_head.mask_dim": 32,
    "model.sem_seg_head.transformer_enc_layers": 1,
    "model.sem_seg_head.num_classes": 3,
    "model.mask_former.hidden_dim": 64,
    "model.mask_former.nheads": 4,
    "model.mask_former.dim_feedforward": 64,
    "model.mask_former.num_object_queries": 8,
    "model.mask_former.dec_layers": 2,
    "dataset.contiguous_id": True,
    "dataset.train.batch_size": 2,
    "dataset.train.num_workers": 0,
    "dataset.val.num_workers": 0,
    "dataset.test.num_workers": 0,
    "dataset.augmentation.train_min_size": [64],
    "dataset.augmentation.train_crop_size": [48, 48],
    "dataset.augmentation.test_min_size": 64,
    "dataset.augmentation.test_max_size": 128,
    "train.num_epochs": 2,
    "train.optim.lr": 1e-3,
    "wandb.enable": False,
}


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, list[Segment]]:
    """Image [64, 64, 3], segment ids [64, 64] (0 is a void corner) and the segments: discs and boxes on ground."""
    rng = np.random.default_rng(seed)
    ids = np.ones((SIDE, SIDE), dtype=np.int32)
    segments = [Segment(1, 9)]
    rows, columns = np.indices(ids.shape)
    for k, category in enumerate((3, 5, 3, 5), 2):
        y, x, r = rng.integers(10, SIDE - 10), rng.integers(10, SIDE - 10), rng.integers(5, 10)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < r * r
        if category == 5:
            inside = (abs(rows - y) < r) & (abs(columns - x) < r)
        ids[inside] = k
        segments.append(Segment(k, category))
    ids[:6, :6] = 0
    segments = [s for s in segments if (ids == s.id).any()]
    color = np.zeros((LARGEST_SEGMENT + 1, 3))
    for s in segments:
        color[s.id] = COLORS[s.category_id]
    image = (color[ids] + rng.normal(0, 12, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
    return image, ids, segments


def write_split(folder: Path, count: int, first_seed: int) -> None:
    """`images/`, `panoptic/`, and the same objects as panoptic, instance and ADE annotations."""
    for name in ("images", "panoptic", "classes"):
        (folder / name).mkdir(parents=True)
    entries, panoptic_rows, instance_rows, pairs = [], [], [], []
    for i in range(count):
        image, ids, segments = scene(first_seed + i)
        entries.append(ImageEntry(i + 1, f"{i:03d}.png", SIDE, SIDE))
        Image.fromarray(image).save(folder / "images" / f"{i:03d}.png")
        panoptic.write_ids(folder / "panoptic" / f"{i:03d}.png", ids)
        info = panoptic.segments_info(extents(ids), segments)
        panoptic_rows.append({"image_id": i + 1, "file_name": f"{i:03d}.png", "segments_info": info})
        classes = np.zeros_like(ids)
        for s in segments:
            classes[ids == s.id] = s.category_id
            if s.category_id != 9:
                mask = rle.encode(ids == s.id)
                row = {"id": len(instance_rows) + 1, "image_id": i + 1, "category_id": s.category_id, "iscrowd": 0}
                instance_rows.append({**row, "segmentation": mask, "area": int((ids == s.id).sum())})
        Image.fromarray(classes.astype(np.uint8)).save(folder / "classes" / f"{i:03d}.png")
        pairs.append({"img": f"images/{i:03d}.png", "segm": f"classes/{i:03d}.png"})
    panoptic.write(folder / "panoptic.json", CATEGORIES, entries, panoptic_rows)
    images = [{"id": e.id, "file_name": e.file_name, "width": SIDE, "height": SIDE} for e in entries]
    things = [{"id": c.id, "name": c.name} for c in CATEGORIES if c.isthing]
    content = {"images": images, "annotations": instance_rows, "categories": things}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    labels = [{"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": COLORS[c.id]} for c in CATEGORIES]
    (folder / "label_map.json").write_text(json.dumps(labels))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` with 8 and `val/` with 4 images of 64 pixels, annotated in all three formats."""
    root = tmp_path_factory.mktemp("shapes")
    write_split(root / "train", 8, 0)
    write_split(root / "val", 4, 100)
    return root


@pytest.fixture(scope="session")
def tiny(shapes: Path) -> Callable[..., dict[str, Any]]:
    """A nested spec of a tiny network on `shapes`; `format` and dotted keys as changes."""

    def make(format: str = "coco_panoptic", **changes: Any) -> dict[str, Any]:
        flat = dict(TINY)
        for split in ("train", "val"):
            flat[f"dataset.{split}.type"] = format
            flat[f"dataset.{split}.img_dir"] = str(shapes / split / "images")
            flat[f"dataset.{split}.panoptic_json"] = str(shapes / split / "panoptic.json")
            flat[f"dataset.{split}.panoptic_dir"] = str(shapes / split / "panoptic")
            flat[f"dataset.{split}.instance_json"] = str(shapes / split / "instances.json")
            flat[f"dataset.{split}.root_dir"] = str(shapes / split)
            flat[f"dataset.{split}.annot_file"] = str(shapes / split / "pairs.jsonl")
        flat["dataset.test.img_dir"] = str(shapes / "val" / "images")
        flat["dataset.label_map"] = str(shapes / "train" / "label_map.json")
        flat.update({key.replace("__", "."): value for key, value in changes.items()})
        return dotted.unflatten(flat)

    return make


@pytest.fixture(scope="session")
def weights(tiny: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny network, trained for a few epochs on `shapes`."""
    folder = tmp_path_factory.mktemp("trained")
    spec = tiny(train__num_epochs=15, train__validation_interval=15, train__checkpoint_interval=15)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    faster = [f"results_dir={folder}", "train.optim.lr=3e-3", "train.optim.lr_scheduler=Warmuppoly"]
    assert session.run("train", folder / "spec.yaml", faster) == 0
    return folder / "train" / "mask2former_model_latest.pth"
