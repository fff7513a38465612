"""Where the time of `mask2former inference` goes: the images read; and segmented; and read out; and all files written.

    python benchmarks/engine/gpu.py --folder DIR --batch 8 --steps 2500 --compile never   # makes images, and a network
    python benchmarks/engine/stages.py --folder DIR [--batch 8] [--compile never] [--small]

Each line adds a stage, with the verb's own parts in the processes that the verb has for them, and is measured from the
time when they have settled until all images are done. CPU time is that of the main process, all its threads, for an
image.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import gpu
import numpy as np

from mask2former_mcp.engine import fast, inference, photos, result_files, usable
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import load

WARM_UP = 4  # batches: forwards are recorded, kernels compiled
SETTLED = 0.2  # of the images: readers have been started, and what is handed on piles up as it does in the long run


def measured(stage: str, steps: Iterable[int], total: int, end: Callable[[], None] = gpu.wait) -> None:
    """steps: how many images each took, of all `total`. end: returns when what was begun is done."""
    done, settled, started, own = 0, 0, 0.0, 0.0
    for count in steps:
        done += count
        if not settled and done >= SETTLED * total:
            gpu.wait()
            started, own, settled = time.perf_counter(), time.process_time(), done
    end()
    taken, own, images = time.perf_counter() - started, time.process_time() - own, done - settled
    print(f"{stage}: {images / taken:.0f} images/s; main process {1e3 * own / images:.2f} CPU ms an image", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--compile", choices=["never", "always"], default="never", dest="compiling")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    os.environ[fast.COMPILE] = arguments.compiling
    case, folder = gpu.SMALL if arguments.small else gpu.Case(), arguments.folder
    results = Path(tempfile.mkdtemp(dir=folder))
    content = gpu.spec(case, folder, "many", results, arguments.batch, 1, arguments.workers)
    spec = load("inference", dotted.with_value(content, "inference.checkpoint", str(gpu.newest(folder))))
    known = usable.open_model(spec, spec.inference.checkpoint)
    assert known.classes is not None  # gpu.py's trainings have them
    paths = photos.find_images(spec.dataset.test.img_dir)
    kept = inference.kept_pictures(spec, len(paths))
    with result_files.writing(result_files.image_files(results, paths, known.classes, spec, kept)) as writer:
        segmenter, batches = inference.prepare(spec, known, paths, known.classes, kept)
        outcomes = [outcome for _, some in islice(segmenter(batches), WARM_UP) for outcome in some]
        segments = np.mean([len(o.panoptic.segments) for o in outcomes if o.panoptic is not None])
        instances = [o.instances for o in outcomes if o.instances is not None]
        runs = np.mean([len(mask["counts"]) for each in instances for mask in each.masks])
        found = np.mean([len(each.masks) for each in instances])
        print(f"{segments:.1f} segments, {found:.1f} instances of {runs:.0f} bytes an image, {len(paths)} images")

        def segmented() -> Iterator[int]:
            """Nobody waits here: what comes out of images that the next ones have replaced is not looked at."""
            for shots in batches:
                segmenter.predict(shots)
                yield len(shots.indices)

        def written() -> Iterator[int]:
            for shots, some in segmenter(batches):
                writer.add(list(zip(shots.indices, some, shots.kept, strict=True)))
                yield len(some)

        measured("read", (len(shots.indices) for shots in batches), len(paths))
        measured("and segmented", segmented(), len(paths))
        measured("and read out", (len(some) for _, some in segmenter(batches)), len(paths))
        measured("and written", written(), len(paths), writer.pool.finish)


if __name__ == "__main__":
    main()
