"""Peak memory and seconds of `check_dataset` on a large COCO panoptic set, alone and against a second split.

    python benchmarks/data/large_check.py [--images 100000] [--folder DIR]

Every record has 12 segments and names files of its own, of 8 x 8 pixels; by links, a thousand of them stand for all. So
the annotations are as long as those of real photographs, every name is opened, and decoding costs next to nothing. Each
check runs in a process of its own, as those in the background do.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mask2former_mcp.datasets import check

SIDE, SEGMENTS, CLASSES, FILES = 8, 12, 133, 1000


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def write(folder: Path, count: int, first: int) -> Path:
    """A split whose images have the numbers from `first` on."""
    for part in ("images", "images_panoptic"):
        (folder / part / "0").mkdir(parents=True)
        for link in range(1, -(-count // FILES)):
            (folder / part / str(link)).symlink_to("0", target_is_directory=True)
    categories = [{"id": i + 1, "name": f"class {i + 1}", "isthing": int(i < 80)} for i in range(CLASSES)]
    ids = np.zeros((SIDE, SIDE, 3), np.uint8)
    ids[..., 0] = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % SEGMENTS + 1
    mask, noise = png(ids), np.random.default_rng(first)
    entries, rows = [], []
    for name in (f"0/{file:06d}.png" for file in range(FILES)):
        (folder / "images" / name).write_bytes(png(noise.integers(0, 256, (SIDE, SIDE, 3), np.uint8)))
        (folder / "images_panoptic" / name).write_bytes(mask)
    for number in range(first, first + count):
        link, file = divmod(number - first, FILES)
        name = f"{link}/{file:06d}.png"
        segments = [
            {"id": k + 1, "category_id": (number * SEGMENTS + k) % CLASSES + 1, "iscrowd": 0, "area": 5,
             "bbox": [0, 0, SIDE, SIDE]}
            for k in range(SEGMENTS)
        ]  # fmt: skip
        entries.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        rows.append({"image_id": number, "file_name": name, "segments_info": segments})
    document = {"images": entries, "annotations": rows, "categories": categories}
    (folder / "annotations_panoptic.json").write_text(json.dumps(document))
    (folder / "label_map_panoptic.json").write_text(json.dumps([{**c, "color": [9, 20, 200]} for c in categories]))
    return folder


def examine(dataset: str, other: str | None, home: Path) -> None:
    """The check itself, in this process; prints one line."""
    request = {
        "dataset": dataset, "compare_with": other, "format": "coco_panoptic", "role": "train", "sample": None
    }  # fmt: skip
    start = time.monotonic()
    report = check.run(request, home, lambda *_: None)
    seconds = time.monotonic() - start
    # Not getrusage: its peak counts what the parent had when it started this process.
    peak = int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024
    what = "with compare_with" if other else "alone"
    counts = f"{report.counts['images']} images, {report.errors} errors, {report.warnings} warnings"
    print(f"{what}: {peak:.0f} MiB at most, {seconds:.0f} s ({counts})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the set is made; a temporary folder otherwise")
    parser.add_argument("--examine", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.examine:
        dataset, *other = arguments.examine
        examine(dataset, other[0] if other else None, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        train = write(folder / "train", arguments.images, 1)
        val = write(folder / "val", arguments.images, 1 + arguments.images)
        size = (train / "annotations_panoptic.json").stat().st_size
        print(f"{arguments.images} images a split, annotations of {size >> 20} MiB", flush=True)
        for asked in ([train], [train, val]):
            subprocess.run(
                [sys.executable, __file__, "--folder", str(folder / "home"), "--examine", *map(str, asked)], check=True
            )


if __name__ == "__main__":
    main()
