"""A small case whose expected values were computed by the reference evaluators themselves (`source` in the file)."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.metrics import InstanceAP, PanopticQuality, SemanticIoU
from mask2former_mcp.engine.postprocess import Instances, Panoptic, Segment

CASE = json.loads((Path(__file__).parents[2] / "facts" / "metrics-case.json").read_text())
THINGS, EXACT = frozenset(CASE["things"]), 1e-6


def decoded(entry: dict[str, Any]) -> np.ndarray:
    return coco_mask.decode(entry["segmentation"]).astype(bool)  # type: ignore[no-any-return]


def numbered(entries: list[dict[str, Any]]) -> np.ndarray:
    ids = np.zeros(CASE["size"], dtype=np.int32)
    for k, entry in enumerate(entries, 1):
        ids[decoded(entry)] = k
    return ids


def true_image(image: dict[str, Any], *, exhaustive: bool = True) -> Truth:
    rows = image["truth"]
    labels, crowd = ([row[key] for row in rows] for key in ("category_id", "iscrowd"))
    return Truth(numbered(rows)[None].astype(np.uint16), np.array(labels), np.array(crowd, dtype=bool), exhaustive)


def test_the_case_is_not_trivial() -> None:
    assert sum(row["iscrowd"] for image in CASE["images"] for row in image["truth"]) > 1
    assert all((numbered(image["truth"]) == 0).any() for image in CASE["images"])
    assert all(0.05 < value < 0.95 for value in CASE["expected"].values())


def test_panoptic_quality_is_panopticapis() -> None:
    metric = PanopticQuality(CASE["classes"], THINGS)
    for image in CASE["images"]:
        rows = image["segments"]
        segments = tuple(Segment(k, row["category_id"], 1.0) for k, row in enumerate(rows, 1))
        metric.add(true_image(image), Panoptic(numbered(rows), segments))
    found = metric.results()
    for name in ("PQ", "SQ", "RQ"):
        for group in ("", "_things", "_stuff"):
            assert found[name + group] == pytest.approx(CASE["expected"][name + group], abs=EXACT)
        for class_, values in metric.per_class().items():
            assert values[name] == pytest.approx(CASE["per_class"][str(class_)][name], abs=EXACT)


def test_instance_ap_is_pycocotools_for_every_size() -> None:
    metric = InstanceAP(THINGS)
    for image in CASE["images"]:
        rows = sorted(image["instances"], key=lambda row: -row["score"])
        classes, scores = (np.array([row[key] for row in rows]) for key in ("category_id", "score"))
        masks = tuple(coco_mask.encode(np.asfortranarray(decoded(row).astype(np.uint8))) for row in rows)
        metric.add(true_image(image, exhaustive=False), Instances(classes, scores, masks))
    found = metric.results()
    assert found.keys() == {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert found == pytest.approx({name: CASE["expected"][name] for name in found}, abs=EXACT)


def test_iou_and_accuracy_are_scikit_learns() -> None:
    metric = SemanticIoU(CASE["classes"])
    for image in CASE["images"]:
        rows = image["classes"]
        table = np.array([0, *(row["category_id"] for row in rows)])
        metric.add(true_image(image).class_map(), table[numbered(rows)])
    assert metric.results() == pytest.approx({name: CASE["expected"][name] for name in ("mIoU", "ACC_all")}, abs=EXACT)
    for class_, values in metric.per_class().items():
        assert values["IoU"] == pytest.approx(CASE["per_class"][str(class_)]["IoU"], abs=EXACT)


@pytest.mark.parametrize("shared", [((0, 1), (2, 3)), ((3, 1), (0, 2)), ((0, 1, 2, 3), ())])
def test_images_shared_among_several_metrics_merge_to_the_same(shared: tuple[tuple[int, ...], ...]) -> None:
    parts = [(SemanticIoU(CASE["classes"]), PanopticQuality(CASE["classes"], THINGS), InstanceAP(THINGS)) for _ in "ab"]
    whole = (SemanticIoU(CASE["classes"]), PanopticQuality(CASE["classes"], THINGS), InstanceAP(THINGS))
    mixed = [(part, index) for part, indices in zip(parts, shared, strict=True) for index in indices]
    for (semantic, quality, ap), index in itertools.chain(mixed, ((whole, i) for i in range(4))):
        image = CASE["images"][index]
        truth, rows = true_image(image), image["segments"]
        table = np.array([5, *(row["category_id"] for row in rows)])
        semantic.add(truth.class_map(), table[numbered(rows)])
        quality.add(truth, Panoptic(numbered(rows), tuple(Segment(k, int(c), 1.0) for k, c in enumerate(table[1:], 1))))
        # All scores are equal, so that only the order of the images decides.
        masks = tuple(coco_mask.encode(np.asfortranarray(decoded(row).astype(np.uint8))) for row in rows)
        ap.add(truth, Instances(table[1:], np.ones(len(rows)), masks), index)
    for k, metric in enumerate(parts[0]):
        metric.merge(parts[1][k])  # type: ignore[arg-type]
        assert metric.results() == pytest.approx(whole[k].results(), abs=1e-12)  # type: ignore[attr-defined]


def test_void_pixels_take_no_part_in_instance_ap() -> None:
    planes = np.zeros((1, 20, 20), dtype=np.uint16)
    planes[0, :10, :10], planes[0, 10:] = 1, 2
    truth = Truth(planes, np.array([1, 4]), np.zeros(2, dtype=bool), exhaustive=True)
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[:10] = 1  # the object, and as much again of void
    void = np.zeros_like(mask)
    void[2:6, 12:] = 1
    found = Instances(
        np.array([1, 1]), np.array([0.5, 0.9]), tuple(coco_mask.encode(np.asfortranarray(m)) for m in (mask, void))
    )
    metric = InstanceAP(THINGS)
    metric.add(truth, found)
    assert metric.results()["AP"] == pytest.approx(1.0)
