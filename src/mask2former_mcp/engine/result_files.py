"""What inference writes: pictures for people and files for programs.

    <stem>.jpg                  overlay: contours, names
    panoptic/<stem>.png         segment ids (R + 256 G + 65536 B), each with its score in panoptic.json (COCO panoptic)
    instances.json              COCO results: image_id, category_id, segmentation (RLE), bbox, score; and for readers
                                without the other files category (its name) and file_name
    semantic/<stem>.png         category id per pixel: 8 bit, 16 bit with ids above 255, as segment ids above 65535
    categories.json             category_id -> name, isthing, color
    images.json                 image_id -> file (from img_dir on), stem, size: what the ids above refer to

Panoptic mode writes all of it, instance mode pictures and instances, semantic mode pictures and semantic maps. The
files of an image are written by processes beside the network's; the JSON files, which list all images, at the end.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mask2former_mcp.engine import artifacts, loader, postprocess, worker_pool
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.pictures import NOWHERE, Kept, Pictures
from mask2former_mcp.engine.scoring import Outcome
from mask2former_mcp.engine.worker_pool import InOrder
from mask2former_mcp.formats import images, label_png, panoptic
from mask2former_mcp.formats.panoptic import Segment
from mask2former_mcp.formats.records import Category, ImageEntry
from mask2former_mcp.spec.experiment import Experiment

TOGETHER = 4  # images that one process is given at once
Found = tuple[int, Outcome, Kept | None]  # the number of an image, what was found in it, its picture if kept


class Described(NamedTuple):
    """What the JSON files say of one image: panoptic, the entry of COCO panoptic; instances, COCO results, as the text
    of a list without its brackets: there are many."""

    image: ImageEntry
    panoptic: dict[str, Any] | None
    instances: str


@dataclass(frozen=True)
class ImageFiles:
    """The files of single images: all that a process needs to write them. category_ids: by class, 0 for none."""

    folder: Path
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    stems: tuple[str, ...]
    classes: Classes
    category_ids: NDArray[np.int64]
    mode: str
    threshold: float
    min_score: float
    pictures: Pictures = NOWHERE

    def write_all(self, found: Sequence[Found]) -> list[Described]:
        """As `write`, of several."""
        return [self.write(*one) for one in found]

    def write(self, index: int, outcome: Outcome, kept: Kept | None = None) -> Described:
        """kept: its picture, if so. Raises OSError or ValueError, naming the image."""
        try:
            return self._write(index, outcome, kept)
        except OSError as cause:
            raise OSError(f"{self.names[index]}: its results could not be written: {cause}") from cause
        except ValueError as cause:
            raise ValueError(f"{self.names[index]}: its results could not be drawn: {cause}") from cause

    def _write(self, index: int, outcome: Outcome, kept: Kept | None) -> Described:
        stem, image_id = self.stems[index], index + 1
        picture = self.pictures.get(kept) if kept else None
        if picture is None:
            picture = images.read(self.paths[index])
        regions = artifacts.outcome_regions(outcome, self.classes, mode=self.mode, threshold=self.threshold)
        artifacts.save(self.folder / f"{stem}.jpg", artifacts.overlay(picture, regions, self.classes))
        described = None
        if outcome.panoptic is not None:
            segments = [Segment(s.id, int(self.category_ids[s.class_])) for s in outcome.panoptic.segments]
            panoptic.write_ids(self.folder / "panoptic" / f"{stem}.png", outcome.panoptic.ids)
            scores = {s.id: round(s.score, 5) for s in outcome.panoptic.segments}
            listed = panoptic.segments_info(outcome.panoptic.extents, segments)
            info = [{**each, "score": scores[each["id"]]} for each in listed]
            described = {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": info}
        if outcome.semantic is not None:
            write_categories(self.folder / "semantic" / f"{stem}.png", outcome.semantic, self.category_ids)
        entry = ImageEntry(image_id, self.names[index], picture.shape[1], picture.shape[0])
        found = [] if outcome.instances is None else self._results(entry, outcome)
        return Described(entry, described, json.dumps(found)[1:-1])

    def _results(self, image: ImageEntry, outcome: Outcome) -> list[dict[str, Any]]:
        found = outcome.instances
        assert found is not None  # the caller has looked
        count = int(np.count_nonzero(found.scores >= self.min_score))  # of the first, the best
        masks = list(found.masks[:count])
        boxes = coco_mask.toBbox(masks).tolist()
        return [
            {
                "image_id": image.id,
                "file_name": image.file_name,
                "category_id": int(self.category_ids[class_]),
                "category": self.classes[int(class_)].name,
                "segmentation": {"size": [int(n) for n in mask["size"]], "counts": mask["counts"].decode("ascii")},
                "bbox": box,
                "score": round(float(score), 5),
            }
            for class_, score, mask, box in zip(found.classes, found.scores, masks, boxes, strict=False)
            if box[2] > 0
        ]


def image_files(
    folder: Path, paths: Sequence[Path], classes: Classes, spec: Experiment, pictures: Pictures = NOWHERE
) -> ImageFiles:
    """Raises ValueError for category ids that no PNG can hold."""
    ids = np.array([0, *(classes[c].category_id for c in range(1, len(classes) + 1))], dtype=np.int64)
    if spec.model.mode != "instance" and ids.max() > panoptic.LARGEST_ID:
        raise ValueError(
            f"category id {ids.max()} cannot be written to a PNG, whose pixels hold up to"
            f" {panoptic.LARGEST_ID}: give the label map smaller ids, or set model.mode=instance"
        )
    return ImageFiles(
        folder,
        tuple(paths),
        tuple(path.relative_to(spec.dataset.test.img_dir).as_posix() for path in paths),
        tuple(unique_stems(paths)),
        classes,
        ids,
        spec.model.mode,
        spec.model.object_mask_threshold,
        spec.inference.min_score,
        pictures,
    )


class Writer:
    """Takes outcomes, in any order. A thread hands them over, whose copies need not keep whoever feeds a GPU."""

    def __init__(self, pool: InOrder, thread: ThreadPoolExecutor) -> None:
        self._pool, self._thread = pool, thread
        self._last: Future[None] | None = None

    def add(self, found: Sequence[Found]) -> None:
        """Returns when those before are handed over. Raises what an earlier one raised."""
        self._handed_over()
        self._last = self._thread.submit(self._hand_over, found)

    def finish(self) -> None:
        """Returns when the files of all are written."""
        self._handed_over()
        self._pool.finish()

    def _handed_over(self) -> None:
        if self._last is not None:
            self._last.result()

    def _hand_over(self, found: Sequence[Found]) -> None:
        """A few together take little more than one alone."""
        for at in range(0, len(found), TOGETHER):
            self._pool.add(found[at : at + TOGETHER])


def writers(count: int) -> int:
    """Processes that write so many images: one a core but for the one that drives the network. The loader's take their
    share of the cores from them: both wait when they are ahead."""
    return min(count, max(1, loader.cores() - 1))


def images_under_way(count: int) -> int:
    """Images of `count` that are handed over and not written yet, at most."""
    return TOGETHER * worker_pool.AHEAD * writers(count)


@contextmanager
def writing(files: ImageFiles, *, processes: int = 0) -> Iterator[Writer]:
    """What takes outcomes; the JSON files are written when the block is done. processes: that write; 0: `writers`."""
    described: list[Described] = []
    for kind in {"panoptic": ("panoptic", "semantic"), "semantic": ("semantic",)}.get(files.mode, ()):
        (files.folder / kind).mkdir(exist_ok=True)
    processes = processes or writers(len(files.paths))
    together = worker_pool.in_order(ImageFiles.write_all, files, described.extend, processes)
    with ThreadPoolExecutor(1) as thread, together as pool:  # in this order: who is interrupted waits for no tasks
        writer = Writer(pool, thread)
        yield writer
        writer.finish()
    _write_lists(files, sorted(described, key=lambda one: one.image.id))


def _write_lists(files: ImageFiles, described: Sequence[Described]) -> None:
    entries = [one.image for one in described]
    listing = [
        {"id": i.id, "file_name": i.file_name, "stem": files.stems[i.id - 1], "width": i.width, "height": i.height}
        for i in entries
    ]
    write_json(files.folder / "images.json", listing)
    known = [files.classes[c] for c in files.classes.known]
    named = [{"id": e.category_id, "name": e.name, "isthing": e.isthing, "color": e.color} for e in known]
    write_json(files.folder / "categories.json", named)
    if files.mode in ("panoptic", "instance"):
        found = ", ".join(one.instances for one in described if one.instances)
        (files.folder / "instances.json").write_text(f"[{found}]", encoding="utf-8")
    if files.mode == "panoptic":
        categories = [Category(e.category_id, e.name, e.isthing) for e in known]
        segments = [one.panoptic for one in described if one.panoptic is not None]
        panoptic.write(files.folder / "panoptic.json", categories, entries, segments)


def write_categories(path: Path, class_map: NDArray[np.integer[Any]], category_ids: NDArray[np.int64]) -> None:
    """[H, W] classes as a PNG of category ids that holds the largest of them, whatever this image has: all of a run
    are of one kind."""
    largest = int(category_ids.max())
    if largest >= 1 << 16:
        panoptic.write_ids(path, category_ids[class_map])
    else:
        table: NDArray[Any] = category_ids.astype(np.uint8 if largest < 1 << 8 else np.uint16)
        label_png.write(path, postprocess.looked_up(table, class_map))


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """A name for each image's results: its stem, and where that is taken, with folder and extension as well."""
    taken: set[str] = set()
    stems = []
    for path in paths:
        extension = path.suffix[1:].lower()
        candidates = (path.stem, f"{path.stem}_{extension}", f"{path.parent.name}_{path.stem}_{extension}")
        stem = next((c for c in candidates if c not in taken), f"{candidates[-1]}_{len(taken)}")
        taken.add(stem)
        stems.append(stem)
    return stems


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
