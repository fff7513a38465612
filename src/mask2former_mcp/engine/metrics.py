"""Segmentation metrics, each fed image by image: mIoU and panoptic quality, which keep sums, and instance AP, which
keeps a score and some bits of each detection.

All are taken at the size of the original image. Classes are 1..C, 0 is "nothing said" (void). Images may be shared
among several metrics of one kind, in any order: `merge` makes one of two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mask2former_mcp.engine import coco_matches
from mask2former_mcp.engine.coco_matches import Matches
from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.postprocess import Instances, Partition

PerClass = dict[int, dict[str, float]]  # class -> name of the metric -> value


class SemanticIoU:
    """Mean intersection over union and pixel accuracy, from one confusion matrix over all images.

    A class that is neither in the truth nor predicted has no IoU and is left out of the mean.
    """

    def __init__(self, num_classes: int) -> None:
        self._confusion = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)  # [truth, prediction]

    def add(self, truth: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]]) -> None:
        """Two [H, W] maps of classes; pixels whose truth is 0 do not count."""
        size = len(self._confusion)
        pairs = truth.astype(np.int64) * size + prediction
        self._confusion += np.bincount(pairs[truth > 0], minlength=size * size).reshape(size, size)

    def merge(self, other: "SemanticIoU") -> None:
        self._confusion += other._confusion

    def results(self) -> dict[str, float]:
        per_class = [v["IoU"] for v in self.per_class().values()]
        counted = int(self._confusion.sum())
        return {
            "mIoU": float(np.mean(per_class)) if per_class else math.nan,
            "ACC_all": float(np.trace(self._confusion[1:, 1:]) / counted) if counted else math.nan,
        }

    def per_class(self) -> PerClass:
        right = np.diag(self._confusion)
        union = self._confusion.sum(1) + self._confusion.sum(0) - right
        return {c: {"IoU": float(right[c] / union[c])} for c in range(1, len(right)) if union[c]}


@dataclass
class PanopticQuality:
    """PQ = SQ x RQ (Kirillov et al., 2019, https://arxiv.org/abs/1801.00868), as panopticapi counts it.

    A predicted and a true segment of one class match when their IoU exceeds 1/2, where predicted pixels on void do not
    count. A prediction without match is forgiven when more than half of it lies on void or on crowds of its class.
    Averages are over the classes that have any segment, true or predicted.
    """

    num_classes: int
    things: frozenset[int]
    _iou: NDArray[np.float64] = field(init=False)
    _counts: NDArray[np.int64] = field(init=False)  # [C + 1, 3]: true positives, false positives, false negatives

    def __post_init__(self) -> None:
        self._iou = np.zeros(self.num_classes + 1)
        self._counts = np.zeros((self.num_classes + 1, 3), dtype=np.int64)

    def add(self, truth: Truth, prediction: Partition) -> None:
        """One image; the truth has one plane."""
        actual = truth.planes[0].astype(np.int64)
        found = prediction.ids.astype(np.int64)
        rows, columns = len(truth.labels) + 1, len(prediction.segments) + 1
        shared = np.bincount((actual * columns + found).reshape(-1), minlength=rows * columns).reshape(rows, columns)
        true_class = np.concatenate([[0], truth.labels])
        found_class = np.array([0, *(s.class_ for s in prediction.segments)], dtype=np.int64)
        crowd = np.concatenate([[False], truth.crowd])
        areas, found_areas = shared.sum(1), shared.sum(0)
        union = areas[:, None] + found_areas[None] - shared - shared[0][None]
        same = (true_class[:, None] == found_class[None]) & (true_class[:, None] > 0) & ~crowd[:, None]
        iou = np.where(same, shared / np.maximum(union, 1), 0.0)
        match = iou > 0.5
        np.add.at(self._iou, true_class[np.nonzero(match)[0]], iou[match])
        np.add.at(self._counts[:, 0], true_class[np.nonzero(match)[0]], 1)
        missed = (areas > 0) & ~crowd & ~match.any(1)
        np.add.at(self._counts[:, 2], true_class[missed & (true_class > 0)], 1)
        same_crowd = crowd[:, None] & (true_class[:, None] == found_class[None])
        forgiven = (shared[0] + (shared * same_crowd).sum(0)) / np.maximum(found_areas, 1) > 0.5
        wrong = (found_areas > 0) & ~match.any(0) & ~forgiven & (found_class > 0)
        np.add.at(self._counts[:, 1], found_class[wrong], 1)

    def merge(self, other: "PanopticQuality") -> None:
        self._iou += other._iou
        self._counts += other._counts

    def results(self) -> dict[str, float]:
        """PQ, SQ and RQ of all classes, and as PQ_things, PQ_stuff, ... of some; NaN where there is no such class."""
        per_class = self.per_class()
        every = set(per_class)
        groups = {"": every, "_things": every & self.things, "_stuff": every - self.things}
        return {
            name + group: value
            for group, classes in groups.items()
            for name, value in self._mean(per_class, classes).items()
        }

    def per_class(self) -> PerClass:
        """PQ, SQ, RQ of each class that has a segment, and its counts TP, FP, FN."""
        out: PerClass = {}
        for class_, (tp, fp, fn) in enumerate(self._counts.tolist()):
            if tp + fp + fn:
                halves = tp + 0.5 * fp + 0.5 * fn
                sq = float(self._iou[class_]) / tp if tp else 0.0
                rates = {"PQ": float(self._iou[class_]) / halves, "SQ": sq, "RQ": tp / halves}
                out[class_] = {**rates, "TP": tp, "FP": fp, "FN": fn}
        return out

    @staticmethod
    def _mean(per_class: PerClass, classes: "set[int] | frozenset[int]") -> dict[str, float]:
        return {
            name: float(np.mean([per_class[c][name] for c in classes])) if classes else math.nan
            for name in ("PQ", "SQ", "RQ")
        }


class InstanceAP:
    """COCO's mask average precision through pycocotools. An image is matched when it is added, and its masks let go."""

    def __init__(self, things: frozenset[int]) -> None:
        self._things = things
        self._images: dict[int, Matches] = {}
        self._precision: NDArray[np.float64] | None = None  # of all images so far, once somebody has asked

    def add(self, truth: Truth, prediction: Instances, index: int | None = None) -> None:
        """One image. Segments of other classes than things, true or predicted, are left out; so are void pixels.

        index: its place among all images, which decides between equal scores; without, after those that are there.
        """
        truths = []
        for k, class_ in enumerate(truth.labels.tolist(), 1):
            if class_ in self._things:
                mask = coco_mask.encode(np.asfortranarray(truth.mask(k).astype(np.uint8)))
                truths.append({**_entry(class_, mask), "iscrowd": int(truth.crowd[k - 1])})
        annotated = _annotated(truth)
        found = []
        for class_, score, mask in zip(
            prediction.classes.tolist(), prediction.scores.tolist(), prediction.masks, strict=True
        ):
            if class_ in self._things:
                inside = mask if annotated is None else coco_mask.merge([mask, annotated], intersect=True)
                found.append({**_entry(class_, inside), "iscrowd": 0, "score": score})
        truths, found = ([entry for entry in entries if entry["area"]] for entries in (truths, found))
        self._images[len(self._images) if index is None else index] = coco_matches.match(truths, found, truth.size)
        self._precision = None

    def merge(self, other: "InstanceAP") -> None:
        self._images.update(other._images)
        self._precision = None

    def results(self) -> dict[str, float]:
        """AP (mean over IoU .50:.95 and classes), AP50, AP75; APs, APm, APl: of objects below 32 x 32 pixels, up to
        96 x 96, and above. NaN without any true object (of the size)."""
        p = self._measured()  # [IoU threshold, recall, class, area]
        return {
            "AP": _mean(p[..., 0]),
            "AP50": _mean(p[0, ..., 0]),
            "AP75": _mean(p[5, ..., 0]),
            **{f"AP{size}": _mean(p[..., place]) for place, size in enumerate("sml", 1)},
        }

    def per_class(self) -> PerClass:
        measured = self._measured()[..., 0]
        values = {c: _mean(measured[:, :, i]) for i, c in enumerate(sorted(self._things))}
        return {c: {"AP": value} for c, value in values.items() if math.isfinite(value)}

    def _measured(self) -> NDArray[np.float64]:
        """[IoU threshold, recall, class, area] for 100 detections; -1 where a class has no object of the area."""
        if self._precision is None:
            images = [self._images[index] for index in sorted(self._images)]
            self._precision = coco_matches.precision(images, sorted(self._things))
        return self._precision


def combined(*parts: Mapping[int, Mapping[str, float]]) -> PerClass:
    """Per-class results of several metrics in one table."""
    table: PerClass = {}
    for part in parts:
        for class_, values in part.items():
            table.setdefault(class_, {}).update(values)
    return table


def _annotated(truth: Truth) -> dict[str, Any] | None:
    """Run lengths of the pixels that are not void, None where all count."""
    if not truth.exhaustive:
        return None
    said = truth.planes.any(0)
    return None if said.all() else dict(coco_mask.encode(np.asfortranarray(said.astype(np.uint8))))


def _entry(class_: int, mask: dict[str, Any]) -> dict[str, Any]:
    return {
        "category_id": class_,
        "segmentation": mask,
        "area": float(coco_mask.area(mask)),
        "bbox": coco_mask.toBbox(mask).tolist(),
    }


def _mean(precision: NDArray[np.float64]) -> float:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else math.nan
