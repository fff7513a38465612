"""Inference: every image of a folder segmented, as pictures for people and as files for programs.

    <stem>.jpg                  overlay: contours, names
    panoptic/<stem>.png         segment ids (R + 256 G + 65536 B), described in panoptic.json (COCO panoptic)
    instances.json              COCO results: image_id, category_id, segmentation (RLE), bbox, score; and for readers
                                without the other files category (its name) and file_name
    semantic/<stem>.png         category id per pixel: 8 bit, 16 bit with ids above 255, as segment ids above 65535
    categories.json             category_id -> name, isthing, color
    images.json                 image_id -> file (from img_dir on), stem, size: what the ids above refer to
    unreadable.json             the images that were passed over, and why

Panoptic mode writes all of it, instance mode pictures and instances, semantic mode pictures and semantic maps.
"""

import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mask2former_mcp.engine import artifacts, augment, device, forward_graph, loader, scoring, trained
from mask2former_mcp.engine import classes as class_table
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.engine.progress import Progress
from mask2former_mcp.engine.status import StatusLog
from mask2former_mcp.formats import images, panoptic
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.formats.panoptic import Segment
from mask2former_mcp.formats.records import Category, ImageEntry
from mask2former_mcp.spec.dataset import Augmentation
from mask2former_mcp.spec.experiment import Experiment

PENDING = 2  # images a core that wait to be written


@dataclass(frozen=True, slots=True)
class Photo:
    """image [h, w, 3] at network size; original: the file's own pixels."""

    index: int
    image: NDArray[np.uint8]
    original: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Unreadable:
    index: int
    reason: str


class Photos(Dataset["Photo | Unreadable"]):
    """The images, resized for the network; one that cannot be read is reported, not raised."""

    def __init__(
        self,
        paths: Sequence[Path],
        settings: Augmentation,
        target_size: tuple[int, int] | None,
        within: tuple[int, int] | None,
    ) -> None:
        self.paths, self.settings, self.target_size, self.within = paths, settings, target_size, within

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> "Photo | Unreadable":
        try:
            original = images.read(self.paths[index])
        except FormatError as error:
            return Unreadable(index, str(error))
        size = (original.shape[0], original.shape[1])
        view = loader.evaluation_view(size, self.settings, self.target_size, self.within)
        return Photo(index, view.image(original), original)


def run(spec: Experiment, results_dir: Path) -> None:
    """Segments the images of `dataset.test.img_dir`. Raises ValueError when there is none, or none can be read."""
    status = StatusLog(results_dir)
    known = trained.open_model(spec, spec.inference.checkpoint, trt_engine=spec.inference.trt_engine)
    labels = class_table.read_labels(spec.dataset.label_map)
    classes = known.classes or trained.classes_from_labels(labels, spec)
    paths = find_images(spec.dataset.test.img_dir, without=results_dir)
    if (asked := spec.inference.num_gpus * spec.inference.num_nodes) > 1:
        print(f"inference uses one process, not {asked}: num_gpus and num_nodes are for train and evaluate", flush=True)
    fabric = device.single(spec.inference.gpu_ids, spec.train.precision)
    model = known.model
    if not known.size:
        size = loader.pair(spec.dataset.test.target_size)
        model, said = forward_graph.over(model, fabric, images=len(paths), batch=batch_size(spec), size=size)
        if said:
            print(said, flush=True)
    interpret = known.interpreter(spec, classes)
    normalize = Normalize(spec.dataset.pixel_mean, spec.dataset.pixel_std)
    writer = Writer(results_dir, paths, classes, spec)
    progress = Progress(status, len(paths), message="Inference in progress", unit="image")
    unreadable: list[str] = []
    for items in _batches(spec, paths, known.size):
        photos = [item for item in items if isinstance(item, Photo)]
        for item in items:
            if isinstance(item, Unreadable):
                unreadable.append(item.reason)
                status.skipped(item.reason)
                print(f"skipped: {item.reason}", flush=True)
        if photos:
            outcomes = predict(model, photos, interpret, normalize, fabric.device, known.size)
            for photo, outcome in zip(photos, outcomes, strict=True):
                writer.add(photo, outcome)
        for item in items:
            progress.step(paths[item.index].name)
    if len(unreadable) == len(paths):
        raise ValueError(f"none of the {len(paths)} images could be read; the first: {unreadable[0]}")
    writer.close()
    _write_json(results_dir / "unreadable.json", unreadable)
    told = f", {len(unreadable)} could not be read and were passed over" if unreadable else ""
    status.running(f"Segmented {len(paths) - len(unreadable)} images{told}.", unreadable=len(unreadable))
    each = progress.recent_seconds_per_step()
    pace = f", {1 / each:.1f} images/s" if each else ""
    print(f"segmented {len(paths) - len(unreadable)} images{told}{pace}", flush=True)


@torch.inference_mode()
def predict(
    model: torch.nn.Module,
    photos: Sequence[Photo],
    interpret: scoring.Interpret,
    normalize: Normalize,
    at: torch.device,
    size: tuple[int, int] | None = None,
) -> list[scoring.Outcome]:
    """One outcome per photo, at its original size. size: to pad to, if not to the largest photo."""
    sizes = [(p.image.shape[0], p.image.shape[1]) for p in photos]
    padded = size or (max(h for h, _ in sizes), max(w for _, w in sizes))
    stacked: Tensor = torch.from_numpy(np.stack([augment.padded(p.image, padded) for p in photos])).permute(0, 3, 1, 2)
    prediction = model(normalize(stacked, sizes, at))
    return [
        interpret(prediction, i, sizes[i], padded, (p.original.shape[0], p.original.shape[1]))
        for i, p in enumerate(photos)
    ]


@dataclass(frozen=True, slots=True)
class Described:
    """What the JSON files say of one image: panoptic, the entry of COCO panoptic; instances, COCO results."""

    image: ImageEntry
    panoptic: dict[str, Any] | None
    instances: list[dict[str, Any]]


class Writer:
    """Files of one image as it comes; the JSON files, which list all images, at the end."""

    def __init__(self, folder: Path, paths: Sequence[Path], classes: Classes, spec: Experiment) -> None:
        self._folder, self._classes, self._model = folder, classes, spec.model
        self._min_score = spec.inference.min_score
        self._names = [path.relative_to(spec.dataset.test.img_dir).as_posix() for path in paths]
        self._stems = unique_stems(paths)
        self._pool = ThreadPoolExecutor(loader.cores())  # drawing and compressing leave Python's lock alone
        self._pending: deque[Future[Described]] = deque()
        self._described: list[Described] = []
        self._ids = np.array([0, *(classes[c].category_id for c in range(1, len(classes) + 1))], dtype=np.int64)
        if spec.model.mode != "instance" and self._ids.max() > panoptic.LARGEST_ID:
            raise ValueError(
                f"category id {self._ids.max()} cannot be written to a PNG, whose pixels hold up to"
                f" {panoptic.LARGEST_ID}: give the label map smaller ids, or set model.mode=instance"
            )

    def add(self, photo: Photo, outcome: scoring.Outcome) -> None:
        """Writes in the background; waits when too many images would be held in memory."""
        if len(self._pending) >= PENDING * loader.cores():
            self._described.append(self._pending.popleft().result())
        self._pending.append(self._pool.submit(self._write, photo, outcome))

    def _write(self, photo: Photo, outcome: scoring.Outcome) -> "Described":
        stem, image_id = self._stems[photo.index], photo.index + 1
        height, width = photo.original.shape[:2]
        mode, threshold = self._model.mode, self._model.object_mask_threshold
        regions = artifacts.outcome_regions(outcome, self._classes, mode=mode, threshold=threshold)
        artifacts.save(self._folder / f"{stem}.jpg", artifacts.overlay(photo.original, regions, self._classes))
        described = None
        if outcome.panoptic is not None:
            segments = [Segment(s.id, int(self._ids[s.class_])) for s in outcome.panoptic.segments]
            panoptic.write_ids(self._file("panoptic", stem), outcome.panoptic.ids)
            info = panoptic.segments_info(outcome.panoptic.ids, segments)
            described = {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": info}
        if mode != "instance":
            write_categories(self._file("semantic", stem), self._ids[outcome.semantic], int(self._ids.max()))
        entry = ImageEntry(image_id, self._names[photo.index], width, height)
        return Described(entry, described, [] if outcome.instances is None else self._results(entry, outcome))

    def close(self) -> None:
        with self._pool:
            self._described.extend(pending.result() for pending in self._pending)
        images = [described.image for described in self._described]
        listing = [
            {"id": i.id, "file_name": i.file_name, "stem": self._stems[i.id - 1], "width": i.width, "height": i.height}
            for i in images
        ]
        _write_json(self._folder / "images.json", listing)
        known = {c: self._classes[c] for c in self._classes.known}
        named = [{"id": e.category_id, "name": e.name, "isthing": e.isthing, "color": e.color} for e in known.values()]
        _write_json(self._folder / "categories.json", named)
        if self._model.mode in ("panoptic", "instance"):
            _write_json(self._folder / "instances.json", [found for one in self._described for found in one.instances])
        if self._model.mode == "panoptic":
            categories = [Category(e.category_id, e.name, e.isthing) for e in known.values()]
            segments = [one.panoptic for one in self._described if one.panoptic is not None]
            panoptic.write(self._folder / "panoptic.json", categories, images, segments)

    def _results(self, image: ImageEntry, outcome: scoring.Outcome) -> list[dict[str, Any]]:
        found = outcome.instances
        assert found is not None  # the caller has looked
        return [
            {
                "image_id": image.id,
                "file_name": image.file_name,
                "category_id": int(self._ids[class_]),
                "category": self._classes[int(class_)].name,
                "segmentation": {"size": [int(n) for n in mask["size"]], "counts": mask["counts"].decode("ascii")},
                "bbox": [float(v) for v in coco_mask.toBbox(mask)],
                "score": round(float(score), 5),
            }
            for class_, score, mask in zip(found.classes, found.scores, found.masks, strict=True)
            if score >= self._min_score and coco_mask.area(mask) > 0
        ]

    def _file(self, kind: str, stem: str) -> Path:
        (self._folder / kind).mkdir(exist_ok=True)
        return self._folder / kind / f"{stem}.png"


def write_categories(path: Path, values: NDArray[np.int64], largest: int) -> None:
    """[H, W] category ids as a PNG that holds `largest`, whatever this image has: all of a run are of one kind."""
    if largest >= 1 << 16:
        panoptic.write_ids(path, values)
    else:
        Image.fromarray(values.astype(np.uint8 if largest < 1 << 8 else np.uint16)).save(path)


def find_images(folder: str, *, without: Path | None = None) -> list[Path]:
    """The images in a folder and in those directly below it, in name order.

    without: the folder for results, which may lie below. Raises ValueError when there is no image, and where results
    would be written over them.
    """
    if not folder:
        raise ValueError("dataset.test.img_dir is empty: set it to the folder with the images to segment")
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"dataset.test.img_dir = {folder}: there is no such folder")
    own = without.resolve() if without is not None else None
    if own == root.resolve():
        raise ValueError(
            f"dataset.test.img_dir = {folder} is the folder for the results as well, and overlays would replace the"
            " images: set another results_dir"
        )
    below = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and p.resolve() != own)
    found = [image for place in (root, *below) for image in images.listing(place)]
    if not found:
        raise ValueError(f"dataset.test.img_dir = {folder}: no image ({', '.join(sorted(images.SUFFIXES))}) in it")
    return found


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


def batch_size(spec: Experiment) -> int:
    """Images that are segmented together."""
    return spec.inference.batch_size if spec.inference.batch_size > 0 else spec.dataset.test.batch_size


def _batches(spec: Experiment, paths: Sequence[Path], size: tuple[int, int] | None) -> "DataLoader[Photo | Unreadable]":
    split = spec.dataset.test
    photos = Photos(paths, spec.dataset.augmentation, loader.pair(split.target_size), size)
    batch = batch_size(spec)
    keys = [list(range(at, min(at + batch, len(paths)))) for at in range(0, len(paths), batch)]
    return loader.batches(photos, keys, list, split.num_workers, pin=False)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
