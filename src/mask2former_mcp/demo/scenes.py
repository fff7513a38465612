"""The demo's data set: seeded scenes of a conveyor belt seen from above, written with all their annotations.

An image is drawn from `numpy.random.default_rng([seed, split, index])`, so it depends on its place only, not on how
many processes draw. Six things (own shapes, and 85 % of the time typical colours) and three stuff classes; dirt and
what is hidden almost entirely is void.
"""

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask2former_mcp.demo.painter import DESIGN, STUFF, THINGS, Painter, Scene
from mask2former_mcp.formats import coco, label_map, panoptic, rle
from mask2former_mcp.formats.extents import extents
from mask2former_mcp.formats.records import ImageEntry

VERSION = 1  # of the drawing code: another version is another data set
CATEGORIES = THINGS + STUFF
_COLORS = (
    (205, 150, 85), (40, 170, 75), (225, 45, 50), (50, 110, 235), (245, 205, 40), (200, 70, 200),
    (70, 80, 95), (160, 175, 190), (135, 115, 95),
)  # fmt: skip
_SPLITS = ("train", "val", "test")
_MARK = "scenes.json"
_Written = tuple[dict[str, Any], list[dict[str, Any]]]  # the panoptic annotation and the instances of one image


def make(
    folder: Path | str,
    *,
    train: int = 1200,
    val: int = 120,
    test: int = 12,
    size: int = DESIGN,
    seed: int = 7,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes `train/`, `val/` (images, panoptic and instance annotations, label maps) and `test/images`.

    The same arguments make the same bytes; a folder that already holds them is left as it is. `progress` receives
    (images done, images in all). Returns the folder. Raises ValueError for a folder that holds something else.
    """
    folder = Path(folder).expanduser().resolve()
    wanted = {"version": VERSION, "train": train, "val": val, "test": test, "size": size, "seed": seed}
    if train < 1 or min(val, test) < 0 or size < 64:
        raise ValueError(f"scenes need train >= 1, val and test >= 0, size >= 64; asked for {wanted}")
    mark = folder / _MARK
    if mark.exists():
        if json.loads(mark.read_text(encoding="utf-8")) == wanted:
            return folder
        mark.unlink()
    elif folder.exists() and any(p.name not in _SPLITS for p in folder.iterdir()):
        raise ValueError(f"{folder} holds other files: name a new or empty folder for the scenes")
    counts = dict(zip(_SPLITS, (train, val, test), strict=True))
    done = 0
    with _pool(workers or os.cpu_count() or 1) as each:
        for split, count in counts.items():
            written: list[_Written] = []
            for one in each(partial(_write_one, folder / split, split, size, seed), _prepared(folder / split, count)):
                written.append(one)
                done += 1
                if progress:
                    progress(done, sum(counts.values()))
            if split != "test":
                _write_annotations(folder / split, size, written)
    mark.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    return folder


def draw(seed: int, split: str, index: int, size: int = DESIGN) -> Scene:
    """Draws one scene of a split: train, val or test."""
    return Painter(np.random.default_rng([seed, _SPLITS.index(split), index]), size).scene()


class _pool:
    """Maps in order: in this process for one worker, else over processes. They are spawned, not forked, because the
    caller may run threads and a forked child would inherit their locks.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None

    def __enter__(self) -> Callable[[Callable[[int], _Written], Iterable[int]], Iterable[_Written]]:
        return map if self._pool is None else partial(self._pool.map, chunksize=16)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _prepared(folder: Path, count: int) -> range:
    for name in ("images", "images_panoptic") if folder.name != "test" else ("images",):
        part = folder / name
        part.mkdir(parents=True, exist_ok=True)
        for left_over in part.iterdir():  # of an interrupted or differently sized run
            left_over.unlink()
    return range(count)


def _write_one(folder: Path, split: str, size: int, seed: int, index: int) -> _Written:
    scene = draw(seed, split, index, size)
    stem = f"{split}_{index:05d}"
    Image.fromarray(scene.pixels).save(folder / "images" / f"{stem}.jpg", quality=93)
    if split == "test":
        return {}, []
    panoptic.write_ids(folder / "images_panoptic" / f"{stem}.png", scene.ids)
    info = panoptic.segments_info(extents(scene.ids), scene.segments)
    things = {c.id for c in THINGS}
    instances = [
        {
            "image_id": index + 1,
            "category_id": s["category_id"],
            "segmentation": rle.encode(scene.ids == s["id"]),
            "area": s["area"],
            "bbox": s["bbox"],
            "iscrowd": 0,
        }
        for s in info
        if s["category_id"] in things
    ]
    return {"image_id": index + 1, "file_name": f"{stem}.png", "segments_info": info}, instances


def _write_annotations(folder: Path, size: int, written: list[_Written]) -> None:
    images = [ImageEntry(a["image_id"], a["file_name"].replace(".png", ".jpg"), size, size) for a, _ in written]
    panoptic.write(folder / "annotations_panoptic.json", CATEGORIES, images, [a for a, _ in written])
    objects = [o for _, found in written for o in found]
    numbered = [{"id": number, **o} for number, o in enumerate(objects, 1)]
    coco.write(folder / "annotations.json", THINGS, images, numbered)
    labels = [label_map.Label(c.id, c.name, c.isthing, _COLORS[i]) for i, c in enumerate(CATEGORIES)]
    label_map.write(folder / "label_map_panoptic.json", labels)
    label_map.write(folder / "label_map.json", labels[: len(THINGS)])
