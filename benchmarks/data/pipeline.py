"""Images per second that one core decodes and augments for training, in the three formats, by the engine's own loader.

    python benchmarks/data/pipeline.py [--images 64] [--size 640 480] [--crop 640] [--workers 1]

Photographs are simulated by smoothed noise (JPEG of about 0.2 byte a pixel); each has a dozen segments. Reading is from
the page cache. With --workers 0 the loader runs in this process; with n the figure is divided by n.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from mask2former_mcp.engine import data, loader, targets
from mask2former_mcp.formats import panoptic, rle
from mask2former_mcp.formats.extents import extents
from mask2former_mcp.formats.panoptic import Segment
from mask2former_mcp.formats.records import Category, ImageEntry
from mask2former_mcp.spec.experiment import Experiment, load

CATEGORIES = tuple(Category(i, f"class {i}", i < 80) for i in range(1, 134))
SEGMENTS = 12


def photograph(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def partition(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """[H, W] ids 1..SEGMENTS, each the pixels nearest to one of as many points."""
    rows, columns = np.indices((height, width))
    points = rng.random((SEGMENTS, 2)) * (height, width)
    return np.argmin([(rows - y) ** 2 + (columns - x) ** 2 for y, x in points], 0) + 1


def write(folder: Path, count: int, width: int, height: int) -> None:
    """One set of images annotated as COCO panoptic, COCO instances and ADE."""
    for name in ("images", "panoptic", "classes"):
        (folder / name).mkdir()
    entries, whole, things, pairs = [], [], [], []
    for i in range(count):
        rng = np.random.default_rng(i)
        ids = partition(rng, width, height)
        segments = [Segment(k, int(rng.integers(1, len(CATEGORIES)))) for k in range(1, SEGMENTS + 1)]
        Image.fromarray(photograph(rng, width, height)).save(folder / "images" / f"{i}.jpg", quality=85)
        panoptic.write_ids(folder / "panoptic" / f"{i}.png", ids)
        info = panoptic.segments_info(extents(ids), segments)
        entries.append(ImageEntry(i + 1, f"{i}.jpg", width, height))
        whole.append({"image_id": i + 1, "file_name": f"{i}.png", "segments_info": info})
        table = np.array([0, *(s.category_id for s in segments)], dtype=np.uint8)
        Image.fromarray(table[ids]).save(folder / "classes" / f"{i}.png")
        pairs.append({"img": f"images/{i}.jpg", "segm": f"classes/{i}.png"})
        for segment in segments:
            mask = rle.encode(ids == segment.id)
            row = {"id": len(things) + 1, "image_id": i + 1, "category_id": segment.category_id, "iscrowd": 0}
            things.append({**row, "segmentation": mask, "area": int((ids == segment.id).sum())})
    panoptic.write(folder / "panoptic.json", CATEGORIES, entries, whole)
    listed = [{"id": e.id, "file_name": e.file_name, "width": width, "height": height} for e in entries]
    categories = [{"id": c.id, "name": c.name} for c in CATEGORIES]
    (folder / "instances.json").write_text(
        json.dumps({"images": listed, "annotations": things, "categories": categories})
    )
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    labels = [{"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": [9, 9, c.id]} for c in CATEGORIES]
    (folder / "labels.json").write_text(json.dumps(labels))


def specs(folder: Path, crop: int) -> Iterator[tuple[str, Experiment]]:
    split = {
        "img_dir": str(folder / "images"),
        "panoptic_json": str(folder / "panoptic.json"),
        "panoptic_dir": str(folder / "panoptic"),
        "instance_json": str(folder / "instances.json"),
        "root_dir": str(folder),
        "annot_file": str(folder / "pairs.jsonl"),
    }
    for name, mode in (("coco_panoptic", "panoptic"), ("coco", "instance"), ("ade", "semantic")):
        dataset: dict[str, Any] = {
            "train": {**split, "type": name},
            "label_map": str(folder / "labels.json"),
            "contiguous_id": True,
            "augmentation": {"train_crop_size": [crop, crop], "train_min_size": [crop]},
        }
        model = {"mode": mode, "sem_seg_head": {"num_classes": len(CATEGORIES)}}
        yield name, load("train", {"dataset": dataset, "model": model})


def pace(spec: Experiment, workers: int, *, cached: bool) -> float:
    """Images a second of one worker; of the second pass over the split, when the cache is full, with `cached`."""
    opened = data.open_split(spec.dataset.train, spec.dataset, num_classes=len(CATEGORIES))
    rule = targets.rule_for(spec.model.mode, opened.classes)
    samples = loader.Samples(opened, rule, spec.dataset.augmentation, seed=0, cache=cached)
    batch = 4
    steps = len(samples) // batch
    order = loader.Order(images=len(samples), batch=batch, steps=steps, epochs=3, seed=0)
    batches = iter(loader.training_loader(samples, order, workers=workers, pin=False))
    for _ in range(steps):  # workers start, and caches fill
        next(batches)
    started = time.perf_counter()
    for _ in range(2 * steps):
        next(batches)
    return 2 * steps * batch / (time.perf_counter() - started) / max(1, workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--crop", type=int, default=640)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    width, height = asked.size
    print(f"{width} x {height}, crop {asked.crop}, {asked.workers} worker(s), {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), asked.images, width, height)
        for name, spec in specs(Path(folder), asked.crop):
            plain, cached = (pace(spec, asked.workers, cached=cached) for cached in (False, True))
            print(f"{name}: {plain:.1f} images/s a core from files, {cached:.1f} from the cache", flush=True)


if __name__ == "__main__":
    main()
