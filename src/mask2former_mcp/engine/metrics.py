"""Segmentation metrics, each fed image by image and bounded in memory: mIoU, panoptic quality, instance AP.

All are taken at the size of the original image. Classes are 1..C, 0 is "nothing said" (void).
"""

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.postprocess import Instances, Panoptic

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

    def absorb(self, other: "SemanticIoU") -> None:
        """Takes in what was measured on other images."""
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

    def add(self, truth: Truth, prediction: Panoptic) -> None:
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

    def absorb(self, other: "PanopticQuality") -> None:
        """Takes in what was measured on other images."""
        self._iou += other._iou
        self._counts += other._counts

    def results(self) -> dict[str, float]:
        per_class = self.per_class()
        every = self._mean(per_class, set(per_class))
        return {
            **every,
            "PQ_things": self._mean(per_class, self.things & set(per_class))["PQ"],
            "PQ_stuff": self._mean(per_class, set(per_class) - self.things)["PQ"],
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
    """COCO's mask average precision through pycocotools; holds run lengths only."""

    def __init__(self, things: frozenset[int]) -> None:
        self._things = things
        self._images: list[dict[str, Any]] = []
        self._truths: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def add(self, truth: Truth, prediction: Instances, image: int | None = None) -> None:
        """One image. Segments of other classes than things, true or predicted, are left out.

        image: its number in the whole set, where other processes see the rest; otherwise it is the next.
        """
        image_id = len(self._images) + 1 if image is None else image + 1
        self._images.append({"id": image_id, "height": truth.size[0], "width": truth.size[1]})
        wanted = [k for k, c in enumerate(truth.labels.tolist(), 1) if c in self._things]
        for k in wanted:
            mask = coco_mask.encode(np.asfortranarray(truth.mask(k).astype(np.uint8)))
            entry = _entry(image_id, int(truth.labels[k - 1]), mask)
            if entry["area"]:
                self._truths.append({**entry, "iscrowd": int(truth.crowd[k - 1])})
        for class_, score, mask in zip(
            prediction.classes.tolist(), prediction.scores.tolist(), prediction.masks, strict=True
        ):
            if class_ in self._things:
                entry = _entry(image_id, class_, mask)
                if entry["area"]:
                    self._found.append({**entry, "iscrowd": 0, "score": score})

    def absorb(self, other: "InstanceAP") -> None:
        """Takes in what was measured on other images."""
        for own, more in ((self._images, other._images), (self._truths, other._truths), (self._found, other._found)):
            own.extend(more)

    def results(self) -> dict[str, float]:
        """AP (mean over IoU .50:.95 and classes), AP50, AP75. NaN without any true object."""
        precision = self._precision()
        if precision is None:
            return {"AP": math.nan, "AP50": math.nan, "AP75": math.nan}
        return {"AP": _mean(precision), "AP50": _mean(precision[0]), "AP75": _mean(precision[5])}

    def per_class(self) -> PerClass:
        precision = self._precision()
        if precision is None:
            return {}
        values = {c: _mean(precision[:, :, i]) for i, c in enumerate(sorted(self._things))}
        return {c: {"AP": value} for c, value in values.items() if math.isfinite(value)}

    def _precision(self) -> NDArray[np.float64] | None:
        """[IoU threshold, recall, class] for all areas and 100 detections; -1 where a class has no object."""
        if not any(not t["iscrowd"] for t in self._truths):
            return None
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
            evaluation = COCOeval(self._coco(self._truths), self._coco(self._found), "segm")
            evaluation.params.catIds = sorted(self._things)
            evaluation.evaluate()
            evaluation.accumulate()
        precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
        return precision

    def _coco(self, annotations: list[dict[str, Any]]) -> COCO:
        coco = COCO()
        categories = [{"id": c, "name": str(c)} for c in sorted(self._things)]
        in_order = sorted(annotations, key=lambda entry: entry["image_id"])  # of equal scores the earlier image's wins
        numbered = [{**entry, "id": number} for number, entry in enumerate(in_order, 1)]
        coco.dataset = {"images": self._images, "annotations": numbered, "categories": categories}
        coco.createIndex()
        return coco


def combined(*parts: Mapping[int, Mapping[str, float]]) -> PerClass:
    """Per-class results of several metrics in one table."""
    table: PerClass = {}
    for part in parts:
        for class_, values in part.items():
            table.setdefault(class_, {}).update(values)
    return table


def _entry(image_id: int, class_: int, mask: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": class_,
        "segmentation": mask,
        "area": float(coco_mask.area(mask)),
        "bbox": coco_mask.toBbox(mask).tolist(),
    }


def _mean(precision: NDArray[np.float64]) -> float:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else math.nan
