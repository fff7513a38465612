"""Instance AP against pycocotools driven the usual way (annotation dictionaries, `loadRes`), and a case by hand."""

import contextlib
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former_mcp.engine.data import Truth, pack
from mask2former_mcp.engine.metrics import InstanceAP
from mask2former_mcp.engine.postprocess import Instances

SIZE = 48


def encoded(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))  # type: ignore[no-any-return]


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def random_image(
    seed: int,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = [box(*rng.integers(0, 30, 2), *rng.integers(4, 18, 2)) for _ in range(5)]
    labels, crowd = rng.integers(1, 4, 5), rng.random(5) < 0.2
    found = [np.roll(m, rng.integers(-2, 3, 2), (0, 1)) for m in masks] + [box(*rng.integers(0, 30, 2), 8, 8)]
    classes = np.where(rng.random(6) < 0.8, np.append(labels, 1), rng.integers(1, 4, 6))
    return masks, labels, crowd, found, classes, np.sort(rng.random(6))[::-1]


def test_it_equals_pycocotools_on_random_images_with_overlaps_and_crowds() -> None:
    ours = InstanceAP(frozenset({1, 2, 3}))
    images, annotations, results = [], [], []
    for image_id in range(1, 13):
        masks, labels, crowd, found, classes, scores = random_image(image_id)
        truth = Truth(pack(masks, SIZE, SIZE), labels, crowd, False)
        ours.add(truth, Instances(classes, scores, tuple(encoded(m) for m in found)))
        images.append({"id": image_id, "height": SIZE, "width": SIZE})
        for mask, label, one in zip(masks, labels, crowd, strict=True):
            rle = encoded(mask)
            shared = {"area": float(mask.sum()), "bbox": coco_mask.toBbox(rle).tolist(), "iscrowd": int(one)}
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(label), "segmentation": rle}
            annotations.append({**row, **shared})
        for mask, class_, score in zip(found, classes, scores, strict=True):
            row = {"image_id": image_id, "category_id": int(class_), "segmentation": encoded(mask)}
            results.append({**row, "score": float(score)})
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": c} for c in (1, 2, 3)]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    measured = ours.results()
    assert 0.05 < measured["AP"] < 0.95
    assert [measured[k] for k in ("AP", "AP50", "AP75")] == pytest.approx(evaluation.stats[:3], abs=1e-9)


def test_images_take_little_memory_however_fine_their_masks_are() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.random((SIZE, SIZE)) < 0.5 for _ in range(40)]
    truth = Truth(pack(noise, SIZE, SIZE), np.tile([1, 2], 20), np.zeros(40, dtype=bool), False)
    found = Instances(np.tile([1, 2], 20), np.linspace(1, 0.1, 40), tuple(encoded(mask) for mask in noise))
    metric = InstanceAP(frozenset({1, 2}))
    metric.add(truth, found)
    assert metric.results()["AP"] == pytest.approx(1.0)
    assert len(pickle.dumps(found)) > 40_000
    assert len(pickle.dumps(metric)) < 10_000 + metric._measured().nbytes


def test_one_hit_and_one_miss_give_the_value_on_paper() -> None:
    # Two objects, one found exactly: recall reaches 1/2 at precision 1, so 51 of the 101 recall points count.
    first, second = box(0, 0, 8, 8), box(20, 20, 8, 8)
    metric = InstanceAP(frozenset({1}))
    truth = Truth(pack([first, second], SIZE, SIZE), np.array([1, 1]), np.zeros(2, dtype=bool), False)
    metric.add(truth, Instances(np.array([1]), np.array([0.9]), (encoded(first),)))
    assert metric.results()["AP"] == pytest.approx(51 / 101)
    assert metric.per_class() == {1: {"AP": pytest.approx(51 / 101)}}


def test_without_any_true_object_nothing_is_measured() -> None:
    metric = InstanceAP(frozenset({1}))
    truth = Truth(
        np.zeros((1, SIZE, SIZE), dtype=np.uint16), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), False
    )
    metric.add(truth, Instances(np.array([1]), np.array([0.9]), (encoded(box(0, 0, 4, 4)),)))
    assert math.isnan(metric.results()["AP"])


def test_objects_without_any_prediction_give_zero() -> None:
    metric = InstanceAP(frozenset({1}))
    truth = Truth(pack([box(0, 0, 8, 8)], SIZE, SIZE), np.array([1]), np.zeros(1, dtype=bool), False)
    metric.add(truth, Instances(np.zeros(0, dtype=np.int64), np.zeros(0), ()))
    assert metric.results()["AP"] == 0
