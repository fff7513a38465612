"""Training and inference on one GPU: our command line on image files, beside transformers' own loop; Swin-T, 640 x 640.

    python benchmarks/engine/gpu.py [--batch 8 --batch 16] [--steps 160] [--compile never] [--folder DIR]

Ours is `mask2former train`, as a user starts it: JPEG files decoded and augmented by worker processes, 20 targets an
image. transformers' loop is Mask2FormerForUniversalSegmentation with its own loss under bf16 autocast and fused AdamW,
on tensors that lie on the GPU already, which spares it the reading. Images/s are those of the last 100 steps. Memory is
the peak that PyTorch has reserved.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric
from PIL import Image
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from mask2former_mcp.engine import fast, forward_graph
from mask2former_mcp.engine.model import network
from mask2former_mcp.formats import panoptic
from mask2former_mcp.formats.panoptic import Segment
from mask2former_mcp.formats.records import Category, ImageEntry
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import load

SIDE, TARGETS, CLASSES, IMAGES = 640, 20, 133, 128


def write_split(folder: Path, count: int) -> None:
    """JPEG files of rectangles on a grid of 5 x 4 segments, TARGETS of them, with noise that a photo would have."""
    rng = np.random.default_rng(0)
    for name in ("images", "panoptic"):
        (folder / name).mkdir(parents=True)
    categories = [Category(i + 1, f"class {i + 1}", i < 80) for i in range(CLASSES)]
    rows, columns = np.indices((SIDE, SIDE))
    entries, annotations = [], []
    for i in range(count):
        ids = (columns * 5 // SIDE + rows * 4 // SIDE * 5 + 1).astype(np.int32)
        # Things only: a class of stuff is one segment, however often it stands there.
        segments = [Segment(k + 1, int(c) + 1) for k, c in enumerate(rng.permutation(80)[:TARGETS])]
        shades = rng.integers(0, 255, (TARGETS + 1, 3))
        coarse = rng.normal(0, 25, (SIDE // 4, SIDE // 4, 3)).repeat(4, 0).repeat(4, 1)
        image = (shades[ids] + coarse).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{i:04d}.jpg", quality=90)
        panoptic.write_ids(folder / "panoptic" / f"{i:04d}.png", ids)
        entries.append(ImageEntry(i + 1, f"{i:04d}.jpg", SIDE, SIDE))
        info = panoptic.segments_info(ids, segments)
        annotations.append({"image_id": i + 1, "file_name": f"{i:04d}.png", "segments_info": info})
    panoptic.write(folder / "panoptic.json", categories, entries, annotations)


def spec(folder: Path, results: Path, batch: int, steps: int, workers: int) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "results_dir": str(results),
        "model.sem_seg_head.num_classes": CLASSES,
        "dataset.contiguous_id": True,
        "dataset.augmentation.train_min_size": [SIDE],
        "dataset.augmentation.train_max_size": SIDE,
        "dataset.augmentation.train_crop_size": [SIDE, SIDE],
        "dataset.augmentation.test_min_size": SIDE,
        "dataset.train.batch_size": batch,
        "dataset.train.num_workers": workers,
        "dataset.val.num_workers": 2,
        "dataset.pin_memory": True,
        "dataset.test.img_dir": str(folder / "train" / "images"),
        "dataset.test.num_workers": workers,
        "train.num_epochs": 1,
        "train.iters_per_epoch": steps,
        "train.precision": "bf16",
        "train.clip_grad_norm": 0.1,
        "wandb.enable": False,
    }
    for split in ("train", "val"):
        flat[f"dataset.{split}.type"] = "coco_panoptic"
        flat[f"dataset.{split}.img_dir"] = str(folder / split / "images")
        flat[f"dataset.{split}.panoptic_json"] = str(folder / split / "panoptic.json")
        flat[f"dataset.{split}.panoptic_dir"] = str(folder / split / "panoptic")
    return dotted.unflatten(flat)


def ours(folder: Path, batch: int, steps: int, workers: int, compiling: str) -> str:
    """`mask2former train` in a process of its own; its pace line."""
    results = Path(tempfile.mkdtemp(dir=folder))
    file = folder / f"train_{batch}_{compiling}.yaml"
    file.write_text(yaml.safe_dump(spec(folder, results, batch, steps, workers)))
    command = [sys.executable, "-m", "mask2former_mcp.engine", "train", "-e", str(file)]
    environ = {**os.environ, fast.COMPILE: compiling}
    started = time.monotonic()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    pace = re.findall(r"[\d.]+ images/s.*", done.stdout)
    if done.returncode or not pace:
        return f"failed ({done.returncode}): {done.stdout[-500:]} {done.stderr[:1500]}"
    return f"{pace[-1]}  (whole command: {time.monotonic() - started:.0f} s)"


def ours_inference(folder: Path, batch: int, workers: int) -> str:
    """`mask2former inference` of the last training's network on many files: read, predict, write everything."""
    photos = folder / "photos"
    if not photos.exists():
        photos.mkdir()
        for copy in range(8):
            for file in (folder / "train" / "images").iterdir():
                os.link(file, photos / f"{copy}_{file.name}")
    results = Path(tempfile.mkdtemp(dir=folder))
    flat = dotted.flatten(spec(folder, results, batch, 1, workers))
    flat["inference.checkpoint"] = str(max(folder.glob("*/train/*_latest.pth"), key=lambda p: p.stat().st_mtime))
    flat |= {
        "dataset.test.img_dir": str(photos),
        "inference.batch_size": batch,
        "dataset.test.target_size": [SIDE, SIDE],
    }
    file = folder / "inference.yaml"
    file.write_text(yaml.safe_dump(dotted.unflatten(flat)))
    command = [sys.executable, "-m", "mask2former_mcp.engine", "inference", "-e", str(file)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pace = re.findall(r"segmented.*", done.stdout)
    if done.returncode or not pace:
        return f"failed ({done.returncode}): {done.stdout[-500:]} {done.stderr[-1500:]}"
    return f"{pace[-1]}  (whole command: {time.monotonic() - started:.0f} s)"


def transformers_network() -> Mask2FormerForUniversalSegmentation:
    swin = SwinConfig(drop_path_rate=0.3, out_features=["stage1", "stage2", "stage3", "stage4"])
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=CLASSES)).cuda()


def theirs(batch: int, steps: int) -> str:
    model = transformers_network().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    images = torch.randn(batch, 3, SIDE, SIDE, device="cuda")
    rows, columns = (torch.arange(SIDE, device="cuda") * n // SIDE for n in (4, 5))
    ids = rows[:, None] * 5 + columns
    masks = [torch.stack([ids == k for k in range(TARGETS)]).float() for _ in range(batch)]
    labels = [torch.randint(CLASSES, (TARGETS,), device="cuda") for _ in range(batch)]
    torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(images, mask_labels=masks, class_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return f"{batch / seconds(step, steps):.1f} images/s, {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB reserved"


def seconds(call: Callable[[], object], times: int) -> float:
    """Median of single calls, each waited for, after three to warm up."""
    taken = []
    for i in range(times + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if i >= 3:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


@torch.inference_mode()
def predictions(batch: int, compiling: bool) -> str:
    """One forward each: class logits, and masks at stride 4. Both in half precision."""
    device = torch.device("cuda")
    experiment = load("train", {"model": {"sem_seg_head": {"num_classes": CLASSES}}})
    own = network.build(experiment).eval().half().to(device)
    os.environ[fast.COMPILE] = "always" if compiling else "never"
    fabric = Fabric(accelerator="cuda", devices=1, precision="16-true")
    graphed, _ = forward_graph.over(own, fabric, images=1, batch=batch, size=None)
    other = transformers_network().eval().half()
    images = torch.randn(batch, 3, SIDE, SIDE, device=device, dtype=torch.float16)
    mine = seconds(lambda: graphed(images).mask_logits(), 30)
    theirs_ = seconds(lambda: other(images), 20)
    return f"own {1e3 * mine:.2f} ms, transformers {1e3 * theirs_:.2f} ms: {theirs_ / mine:.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, action="append", help="8 and 16 without it")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--compile", choices=["never", "always"], action="append", dest="compiling")
    parser.add_argument("--no-inference", action="store_true")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    folder = arguments.folder or Path(tempfile.mkdtemp())
    if not (folder / "val").exists():
        write_split(folder / "train", IMAGES)
        write_split(folder / "val", 2)
    for batch in arguments.batch or [8, 16]:
        print(f"train, batch {batch}: transformers {theirs(batch, 15)}", flush=True)
        torch.cuda.empty_cache()
        for compiling in arguments.compiling or ["never", "always"]:
            found = ours(folder, batch, arguments.steps, arguments.workers, compiling)
            print(f"train, batch {batch}: ours, compile {compiling}: {found}", flush=True)
    for batch in [] if arguments.no_inference else [1, 8]:
        for compiling in arguments.compiling or ["never", "always"]:
            print(
                f"predict, batch {batch}, compile {compiling}: {predictions(batch, compiling == 'always')}", flush=True
            )
    if not arguments.no_inference:
        print(f"mask2former inference, batch 8: {ours_inference(folder, 8, arguments.workers)}", flush=True)


if __name__ == "__main__":
    main()
