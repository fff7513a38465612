"""Training and inference on one GPU: our command line on image files, beside transformers' own loop; Swin-T, 640 x 640.

    python benchmarks/engine/gpu.py [--batch 8] [--steps 160] [--compile never] [--small] [--folder DIR]

Ours is `mask2former train` and `mask2former inference`, as a user starts them: JPEG files decoded and augmented by
worker processes, 20 targets an image, everything written. transformers' loop is its Mask2Former with its own loss under
bf16 autocast and fused AdamW, on tensors that lie on the device already, which spares it the reading. Images/s are
those of the last 100 steps or images. Each training runs on few files, which stay in the loader's cache after the first
pass, and on more files than it has time for, each of which is decoded when it comes.

A prediction is one forward, class logits and masks at stride 4, in a process of its own: ours with the precision,
weights and graph that `mask2former inference` takes for train.precision=fp16, transformers' in half precision. Memory
is the peak that PyTorch has reserved. --small is a tiny network on whatever device there is: to try this script.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

from mask2former_mcp.engine import fast, forward_graph, inference
from mask2former_mcp.engine.model import network
from mask2former_mcp.engine.usable import Usable
from mask2former_mcp.formats import panoptic
from mask2former_mcp.formats.extents import extents
from mask2former_mcp.formats.panoptic import Segment
from mask2former_mcp.formats.records import Category, ImageEntry
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import load

TARGETS, CLASSES, FEW = 20, 133, 128
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """side of the square images; embed_dim, depths, heads of Swin; layers of the two decoders; queries."""

    side: int = 640
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    layers: tuple[int, int] = (6, 10)
    queries: int = 100


SMALL = Case(side=128, embed_dim=48, depths=(1, 1, 1, 1), layers=(1, 3), queries=20)


def write_split(folder: Path, side: int, count: int, files: int) -> None:
    """`files` JPEG files, `count` of them different, of rectangles on a grid of 5 x 4 segments with a photo's noise.
    Each class has a colour, so that there is something to learn."""
    rng = np.random.default_rng(0)
    shades = np.random.default_rng(1).integers(0, 255, (CLASSES, 3))
    for name in ("images", "panoptic"):
        (folder / name).mkdir(parents=True)
    categories = [Category(i + 1, f"class {i + 1}", i < 80) for i in range(CLASSES)]
    rows, columns = np.indices((side, side))
    ids = (columns * 5 // side + rows * 4 // side * 5 + 1).astype(np.int32)
    entries, annotations = [], []
    for i in range(files):
        # Things only: a class of stuff is one segment, however often it stands there.
        classes = np.random.default_rng([2, i % count]).permutation(80)[:TARGETS]
        image, mask = (folder / "images" / f"{i:04d}.jpg", folder / "panoptic" / f"{i:04d}.png")
        if i < count:
            coarse = rng.normal(0, 25, (side // 4, side // 4, 3)).repeat(4, 0).repeat(4, 1)
            Image.fromarray((shades[classes][ids - 1] + coarse).clip(0, 255).astype(np.uint8)).save(image, quality=90)
            panoptic.write_ids(mask, ids)
        else:
            for file in (image, mask):
                os.link(file.with_stem(f"{i % count:04d}"), file)
        segments = [Segment(k + 1, int(c) + 1) for k, c in enumerate(classes)]
        entries.append(ImageEntry(i + 1, image.name, side, side))
        info = panoptic.segments_info(extents(ids), segments)
        annotations.append({"image_id": i + 1, "file_name": mask.name, "segments_info": info})
    panoptic.write(folder / "panoptic.json", categories, entries, annotations)


def spec(case: Case, folder: Path, split: str, results: Path, batch: int, steps: int, workers: int) -> dict[str, Any]:
    side = case.side
    flat: dict[str, Any] = {
        "results_dir": str(results),
        "model.backbone.swin.embed_dim": case.embed_dim,
        "model.backbone.swin.depths": list(case.depths),
        "model.backbone.swin.num_heads": list(case.heads),
        "model.sem_seg_head.num_classes": CLASSES,
        "model.sem_seg_head.transformer_enc_layers": case.layers[0],
        "model.mask_former.dec_layers": case.layers[1],
        "model.mask_former.num_object_queries": case.queries,
        "dataset.contiguous_id": True,
        "dataset.augmentation.train_min_size": [side],
        "dataset.augmentation.train_max_size": side,
        "dataset.augmentation.train_crop_size": [side, side],
        "dataset.augmentation.test_min_size": side,
        "dataset.augmentation.test_max_size": side,
        "dataset.train.batch_size": batch,
        "dataset.train.num_workers": workers,
        "dataset.val.num_workers": 2,
        "dataset.test.img_dir": str(folder / split / "images"),
        "dataset.test.num_workers": workers,
        "train.num_epochs": 1,
        "train.iters_per_epoch": steps,
        "train.precision": "bf16",
        "train.clip_grad_norm": 0.1,
        "inference.batch_size": batch,
        "wandb.enable": False,
    }
    for name, at in (("train", split), ("val", "val")):
        flat[f"dataset.{name}.type"] = "coco_panoptic"
        flat[f"dataset.{name}.img_dir"] = str(folder / at / "images")
        flat[f"dataset.{name}.panoptic_json"] = str(folder / at / "panoptic.json")
        flat[f"dataset.{name}.panoptic_dir"] = str(folder / at / "panoptic")
    return dotted.unflatten(flat)


def ours(verb: str, content: dict[str, Any], results: Path, compiling: str, *overrides: str) -> str:
    """`mask2former <verb>` in a process of its own; its pace line."""
    file = results / f"{verb}.yaml"
    file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "mask2former_mcp.engine", verb, "-e", str(file), *overrides]
    started = time.monotonic()
    environ = {**os.environ, fast.COMPILE: compiling}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    pace = re.findall(r"[\d.]+ images/s.*", done.stdout)
    if done.returncode or not pace:
        return f"failed ({done.returncode}): {done.stdout[-500:]} {done.stderr[-1500:]}"
    return f"{pace[-1]}  (whole command: {time.monotonic() - started:.0f} s)"


def transformers_network(case: Case) -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    swin = SwinConfig(
        embed_dim=case.embed_dim,
        depths=list(case.depths),
        num_heads=list(case.heads),
        drop_path_rate=0.3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        num_labels=CLASSES,
        num_queries=case.queries,
        encoder_layers=case.layers[0],
        decoder_layers=case.layers[1],
    )
    return Mask2FormerForUniversalSegmentation(config).to(DEVICE)


def theirs(case: Case, batch: int, steps: int) -> str:
    model = transformers_network(case).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    images = torch.randn(batch, 3, case.side, case.side, device=DEVICE)
    rows, columns = (torch.arange(case.side, device=DEVICE) * n // case.side for n in (4, 5))
    ids = rows[:, None] * 5 + columns
    masks = [torch.stack([ids == k for k in range(TARGETS)]).float() for _ in range(batch)]
    labels = [torch.randint(CLASSES, (TARGETS,), device=DEVICE) for _ in range(batch)]

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(images, mask_labels=masks, class_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return f"{batch / seconds(step, steps):.1f} images/s, {reserved()}"


def seconds(call: Callable[[], object], times: int) -> float:
    """Median of single calls, each waited for, after three to warm up."""
    taken = []
    for i in range(times + 3):
        wait()
        start = time.perf_counter()
        call()
        wait()
        if i >= 3:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def reserved() -> str:
    if DEVICE.type != "cuda":
        return "memory not measured"
    return f"{torch.cuda.max_memory_reserved() / 2**30:.2f} GiB reserved"


@torch.inference_mode()
def predict(case: Case, batch: int, whose: str, times: int) -> str:
    """One forward: class logits, and masks at stride 4."""
    if whose == "transformers":
        other = transformers_network(case).eval().to(torch.float16 if DEVICE.type == "cuda" else torch.bfloat16)
        images = torch.randn(batch, 3, case.side, case.side, device=DEVICE, dtype=other.dtype)
        taken, said = seconds(lambda: other(images), times), ""
    else:
        content = spec(case, Path(), "train", Path("results"), batch, 1, 0)
        content = dotted.with_value(content, "train.precision", "fp16")
        experiment = load("inference", dotted.with_value(content, "inference.checkpoint", "none.pth"))
        known = Usable(network.build(experiment).eval(), CLASSES, None)
        fabric = inference.device_for(experiment, known)
        model, said = forward_graph.over(known.model, fabric, rooms=[(case.side, case.side)] * times, batch=batch)
        images = torch.randn(batch, 3, case.side, case.side, device=DEVICE)
        taken = seconds(lambda: model(images).mask_logits(), times)
    return f"{1e3 * taken:.2f} ms, {batch / taken:.1f} images/s, {reserved()}  {said}"


def alone(case: Case, batch: int, whose: str, compiling: str) -> str:
    """`predict` in a process of its own, so that its memory is nobody else's."""
    command = [sys.executable, __file__, "--predict", whose, "--batch", str(batch)]
    environ = {**os.environ, fast.COMPILE: compiling}
    command += ["--small"] if case == SMALL else []
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    return done.stdout.strip() if not done.returncode else f"failed ({done.returncode}): {done.stderr[-1500:]}"


def training(case: Case, folder: Path, batch: int, steps: int, workers: int, compiling: list[str]) -> None:
    print(f"train, batch {batch}: transformers {theirs(case, batch, 3 if case == SMALL else 15)}", flush=True)
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    for how in compiling:
        for split in ("few", "many"):
            results = Path(tempfile.mkdtemp(dir=folder))
            content = spec(case, folder, split, results, batch, steps, workers)
            found = ours("train", content, results, how)
            print(f"train, batch {batch}: ours, compile {how}, {split} files: {found}", flush=True)


def predicting(case: Case, folder: Path, batch: int, workers: int, compiling: list[str]) -> None:
    print(f"predict, batch {batch}: transformers {alone(case, batch, 'transformers', 'never')}", flush=True)
    for how in compiling:
        print(f"predict, batch {batch}: ours, compile {how}: {alone(case, batch, 'ours', how)}", flush=True)
    results = Path(tempfile.mkdtemp(dir=folder))
    content = spec(case, folder, "many", results, batch, 1, workers)
    for how in compiling:
        found = ours("inference", content, results, how, f"inference.checkpoint={newest(folder)}")
        print(f"mask2former inference, batch {batch}, compile {how}: {found}", flush=True)


def newest(folder: Path) -> Path:
    """The weights that were trained last."""
    return max(folder.glob("*/train/*_latest.pth"), key=lambda p: p.stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, action="append", help="1, 8 and 16 without it")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--compile", choices=["never", "always"], action="append", dest="compiling")
    parser.add_argument("--no-inference", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--predict", choices=["ours", "transformers"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    case, batches = SMALL if arguments.small else Case(), arguments.batch or [1, 8, 16]
    if arguments.predict:
        print(predict(case, batches[0], arguments.predict, 3 if arguments.small else 30))
        return
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}, {case}", flush=True)
    folder = arguments.folder or Path(tempfile.mkdtemp())
    many = arguments.steps * max(batches)
    for split, files in (("few", min(FEW, many)), ("many", many), ("val", 2)):
        if not (folder / split).exists():
            write_split(folder / split, case.side, min(FEW, files), files)
    compiling = arguments.compiling or ["never", "always"]
    for batch in batches:
        training(case, folder, batch, arguments.steps, arguments.workers, compiling)
        if not arguments.no_inference:
            predicting(case, folder, batch, arguments.workers, compiling)


if __name__ == "__main__":
    main()
