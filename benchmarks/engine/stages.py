"""Where the time of `mask2former inference` goes: the images read; and segmented; and read out; and all files written.

    python benchmarks/engine/stages.py [--batch 8] [--compile never] [--trained DIR] [--small]

Each line adds a stage, with the verb's own parts in the processes that the verb has for them, and is measured from the
time when they have settled until all images are done; writing then has what piled up until there to do as well. CPU
time is that of the main process, all its threads, for an image; cores busy: of the whole machine.

The network is not trained: it runs, and what is read out are the made-up predictions of writing.py. With --trained it
is the one that `gpu.py --folder DIR --steps 2500 --batch 8 --compile never` has left there, on that folder's images.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import gpu
import numpy as np
import psutil
import writing
from torch import Tensor, nn

from mask2former_mcp.engine import fast, inference, photos, result_files, usable
from mask2former_mcp.engine.model import network
from mask2former_mcp.engine.usable import Usable
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import load

WARM_UP = 4  # batches: forwards are recorded, kernels compiled
SETTLED = 0.2  # of the images: readers have been started, and what is handed on piles up as it does in the long run
THROTTLE = 50  # batches that are segmented without waiting, so that their inputs do not pile up


def measured(stage: str, steps: Iterable[int], total: int, end: Callable[[], None] = gpu.wait) -> None:
    """steps: how many images each took, of all `total`. end: returns when what was begun is done."""
    done, settled, started, own, busy = 0, 0, 0.0, 0.0, 0.0
    for count in steps:
        done += count
        if not settled and done >= SETTLED * total:
            gpu.wait()
            started, own, busy, settled = time.perf_counter(), time.process_time(), _busy(), done
    end()
    taken, own, busy = time.perf_counter() - started, time.process_time() - own, _busy() - busy
    images = done - settled
    if not images:
        raise SystemExit(f"{total} images are too few: they are all in the first batches, which are not measured")
    used = f"main process {1e3 * own / images:.2f} CPU ms an image, {busy / taken:.1f} of {os.cpu_count()} cores busy"
    print(f"{stage}: {images / taken:.0f} images/s; {used}", flush=True)


def _busy() -> float:
    """Seconds that the cores of this machine have worked, all together."""
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "nice", 0.0)


class AsIf(nn.Module):
    """Runs a network, and predicts what another one does."""

    def __init__(self, real: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.real, self.other = real, other

    def forward(self, images: Tensor) -> Any:
        self.real(images)
        return self.other(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--compile", choices=["never", "always"], default="never", dest="compiling")
    parser.add_argument("--trained", type=Path, metavar="DIR")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    os.environ[fast.COMPILE] = arguments.compiling
    case, folder = gpu.SMALL if arguments.small else gpu.Case(), arguments.trained or Path(tempfile.mkdtemp())
    if not arguments.trained:
        gpu.write_split(folder / "many", case.side, gpu.FEW, 80 if arguments.small else 4000)
    results = Path(tempfile.mkdtemp(dir=folder))
    content = gpu.spec(case, folder, "many", results, arguments.batch, 1, arguments.workers)
    checkpoint = str(gpu.newest(folder)) if arguments.trained else "none.pth"
    spec = load("inference", dotted.with_value(content, "inference.checkpoint", checkpoint))
    if arguments.trained:
        known = usable.open_model(spec, checkpoint)
    else:
        known = Usable(network.build(spec).eval(), gpu.CLASSES, writing.colorful())
    assert known.classes is not None  # gpu.py's trainings have them
    paths = photos.find_images(spec.dataset.test.img_dir)
    kept = inference.kept_pictures(spec, len(paths))
    with result_files.writing(result_files.image_files(results, paths, known.classes, spec, kept)) as writer:
        segmenter, batches = inference.prepare(spec, known, paths, known.classes, kept)
        if not arguments.trained:
            segmenter = replace(segmenter, model=AsIf(segmenter.model, writing.MadeUp(case.side, arguments.batch)))
        outcomes = [outcome for _, some in islice(segmenter(batches), WARM_UP) for outcome in some]
        segments = np.mean([len(o.panoptic.segments) for o in outcomes if o.panoptic is not None])
        instances = [o.instances for o in outcomes if o.instances is not None]
        runs = np.mean([len(mask["counts"]) for each in instances for mask in each.masks])
        found = np.mean([len(each.masks) for each in instances])
        print(f"{segments:.1f} segments, {found:.1f} instances of {runs:.0f} bytes an image, {len(paths)} images")

        def segmented() -> Iterator[int]:
            for number, shots in enumerate(batches):
                segmenter.predict(shots)
                if number % THROTTLE == 0:
                    gpu.wait()
                yield len(shots.indices)

        def written() -> Iterator[int]:
            for shots, some in segmenter(batches):
                writer.add(list(zip(shots.indices, some, shots.kept, strict=True)))
                yield len(some)

        measured("read", (len(shots.indices) for shots in batches), len(paths))
        measured("and segmented", segmented(), len(paths))
        measured("and read out", (len(some) for _, some in segmenter(batches)), len(paths))
        measured("and written", written(), len(paths), writer.finish)


if __name__ == "__main__":
    main()
