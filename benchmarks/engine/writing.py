"""What one image of `mask2former inference` costs beside the network: read-out and files, in CPU milliseconds.

    python benchmarks/engine/writing.py [--times 8] [--side 640] [--processes 2]

Made-up predictions of 20 segments with bent borders, 100 queries, 133 classes, panoptic mode. Files: overlay, panoptic
and semantic PNG, and of masks that a GPU found the run lengths, as a writing process does it, alone on one core, in CPU
time, so that other work on the machine changes little. Read-out: what turns a prediction into segments, on a GPU in
float16 where there is one. Then both together as the verb does them, several processes writing, on the clock; and what
the main process spends to hand images over that have been read out.
"""

from __future__ import annotations

import argparse
import colorsys
import pickle
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mask2former_mcp.engine import device, fast, inference, loader, pictures, result_files
from mask2former_mcp.engine.classes import Classes, Entry
from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.engine.model.network import Prediction
from mask2former_mcp.engine.photos import Shots
from mask2former_mcp.engine.result_files import Found, Writer
from mask2former_mcp.engine.scoring import Interpreter
from mask2former_mcp.engine.segmenting import Segmenter
from mask2former_mcp.formats import images
from mask2former_mcp.spec.experiment import load

QUERIES, SEGMENTS, CLASSES = 100, 20, 133
BATCH = 8
BEST_OF = 3  # times that CPU time is taken
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Size = tuple[int, int]


def colorful() -> Classes:
    shades = [colorsys.hsv_to_rgb(c * 0.618 % 1, 0.65, 0.9) for c in range(CLASSES)]
    colors = [(int(255 * r), int(255 * g), int(255 * b)) for r, g, b in shades]
    return Classes(tuple(Entry(c + 1, f"class {c + 1}", c < 80, color) for c, color in enumerate(colors)))


def prediction(seed: int, side: int) -> Prediction:
    """SEGMENTS sure queries with bent borders between them, each again as a doubtful one; the rest see nothing."""
    rng = np.random.default_rng(seed)
    grid = -(-side // 4)
    bent = [cv2.resize(rng.normal(0, 0.06, (8, 8)), (grid, grid), interpolation=cv2.INTER_CUBIC) for _ in range(2)]
    rows, columns = (place / grid + shift for place, shift in zip(np.indices((grid, grid)), bent, strict=True))
    centres = rng.uniform(0, 1, (SEGMENTS, 2))
    apart = np.stack([(rows - y) ** 2 + (columns - x) ** 2 for y, x in centres])
    nearest = np.sort(apart, 0)
    masks = 1000 * np.where(apart == nearest[0], nearest[1] - nearest[0], nearest[0] - apart)
    logits = np.zeros((QUERIES, CLASSES + 1))
    logits[:, 0] = 9
    labels = rng.permutation(CLASSES)[:SEGMENTS] + 1
    for copy, sure in enumerate((12.0, 7.5)):
        logits[np.arange(SEGMENTS) + copy * SEGMENTS, labels] = sure
    features = np.concatenate([masks, np.full((1, grid, grid), -9.0)])
    embeddings = np.zeros((QUERIES, SEGMENTS + 1))
    embeddings[np.arange(QUERIES), np.minimum(np.arange(QUERIES) % SEGMENTS, SEGMENTS)] = 1
    embeddings[2 * SEGMENTS :] = np.eye(SEGMENTS + 1)[-1]
    tensors = (torch.from_numpy(part).float() for part in (logits[None, None], embeddings[None, None], features[None]))
    return Prediction(*tensors)


def picture(seed: int, side: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (side // 16, side // 16, 3), dtype=np.uint8)
    fine = np.random.default_rng(seed).normal(0, 8, (side, side, 3))
    smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray((smooth + fine).clip(0, 255).astype(np.uint8))


class MadeUp(nn.Module):
    """Stands for a network: the same predictions for every batch."""

    def __init__(self, side: int, batch: int = BATCH) -> None:
        super().__init__()
        each = [prediction(seed, side) for seed in range(batch)]
        dtype = torch.float16 if DEVICE.type == "cuda" else torch.float32
        axes = zip(zip(*each, strict=True), (1, 1, 0), strict=True)
        self.prediction = Prediction(*(torch.cat(parts, axis).to(DEVICE, dtype) for parts, axis in axes))

    def forward(self, images: Tensor) -> Prediction:
        return self.prediction


def cpu_ms(call: Callable[[], object], each: int) -> float:
    """Milliseconds of CPU time for each of so many images, the least of BEST_OF."""
    taken = []
    for _ in range(BEST_OF):
        start = time.process_time()
        call()
        taken.append(1e3 * (time.process_time() - start) / each)
    return min(taken)


def hand_over(writer: Writer, found: Sequence[Found], times: int) -> None:
    for _ in range(times):
        writer.add(found)
    writer.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--processes", type=int, default=0, help="one a core but for one without it")
    parser.add_argument("--times", type=int, default=8, help="batches")
    arguments = parser.parse_args()
    device.use_threads(gpu=DEVICE.type == "cuda")
    side, times, processes = arguments.side, arguments.times, arguments.processes or max(1, loader.cores() - 1)
    root, classes = Path(tempfile.mkdtemp()), colorful()
    (root / "photos").mkdir()
    for i in range(BATCH):
        picture(i, side).save(root / "photos" / f"{i}.jpg", quality=90)
    content = {
        "inference": {"checkpoint": "none.pth"},
        "dataset": {"test": {"img_dir": str(root / "photos")}},
        "model": {"sem_seg_head": {"num_classes": CLASSES}},
    }
    spec = load("inference", content)
    paths = sorted((root / "photos").iterdir())
    room = pictures.room_for(BATCH)
    kept = [room.keep(images.read(path), place) for place, path in enumerate(paths)]
    files = result_files.image_files(root, paths, classes, spec, room)
    interpret = fast.interpreter(Interpreter(spec.model, classes, inference.least_score(spec)), DEVICE)
    sizes = [(side, side)] * BATCH
    shots = Shots(torch.zeros(BATCH, 3, side, side), list(range(BATCH)), sizes, sizes, kept, [])
    print(f"images of {side} x {side}, torch {torch.__version__}, {DEVICE}", flush=True)
    with result_files.writing(files, processes=processes) as writer:  # forked before the GPU is used
        segmenter = Segmenter(MadeUp(side), interpret, Normalize([0.0] * 3, [1.0] * 3), DEVICE)
        ((_, outcomes),) = segmenter([shots])
        found = list(zip(range(BATCH), outcomes, kept, strict=True))
        # What is decided and encoded once it is read is so in each copy anew, as in a process that was sent one.
        copies = [pickle.loads(pickle.dumps(found)) for _ in range(2 + BEST_OF)]
        read = [outcome for _, outcome, _ in copies.pop()]
        segments = [len(o.panoptic.segments) for o in read if o.panoptic is not None]
        masks = [len(o.instances.masks) for o in read if o.instances is not None]
        print(f"segments {np.mean(segments):.1f}, instances {np.mean(masks):.1f} an image", flush=True)
        start = time.perf_counter()
        for _ in segmenter([shots] * times):
            pass
        print(f"read-out: {1e3 * (time.perf_counter() - start) / (BATCH * times):.2f} ms an image", flush=True)
        start, own = time.perf_counter(), time.process_time()
        for one, read in segmenter([shots] * times):
            writer.add(list(zip(one.indices, read, one.kept, strict=True)))
        writer.finish()
        taken, own = time.perf_counter() - start, time.process_time() - own
        pace, main_ms = BATCH * times / taken, 1e3 * own / (BATCH * times)
        print(f"read-out and files: {pace:.0f} images/s; {main_ms:.2f} CPU ms an image in the main process", flush=True)
        handing = cpu_ms(lambda: hand_over(writer, found, times), BATCH * times)
        print(f"handing over: {handing:.2f} CPU ms an image in the main process", flush=True)
    alone = cpu_ms(lambda: files.write_all(copies.pop()), BATCH)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    files.write_all(copies.pop())
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / BATCH
    print(f"files: {alone:.1f} CPU ms an image, {1e3 / alone:.0f} images/s a core; {faults:.0f} page faults an image")


if __name__ == "__main__":
    main()
