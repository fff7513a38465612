"""Panoptic quality against a slow transcription of its definition, and against values worked out by hand."""

import numpy as np
import pytest

from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.metrics import PanopticQuality
from mask2former_mcp.engine.postprocess import Panoptic, Segment

CLASSES, THINGS = 4, frozenset({1, 2})


def slow_counts(truth: Truth, found: Panoptic, counts: dict[int, list[float]]) -> None:
    """One pair of segments at a time, masks compared pixel by pixel. counts: class -> [IoU, TP, FP, FN]."""
    void = truth.planes[0] == 0
    true_masks = [truth.planes[0] == k for k in range(1, len(truth.labels) + 1)]
    matched_true, matched_found = set(), set()
    for k, mask in enumerate(true_masks):
        for segment in found.segments:
            other = found.ids == segment.id
            if truth.crowd[k] or truth.labels[k] != segment.class_:
                continue
            both = (mask & other).sum()
            union = mask.sum() + other.sum() - both - (void & other).sum()
            if union and both / union > 0.5:
                counts[segment.class_][0] += both / union
                counts[segment.class_][1] += 1
                matched_true.add(k)
                matched_found.add(segment.id)
    for k, mask in enumerate(true_masks):
        if k not in matched_true and not truth.crowd[k] and mask.any():
            counts[int(truth.labels[k])][3] += 1
    for segment in found.segments:
        mask = found.ids == segment.id
        if segment.id in matched_found or not mask.any():
            continue
        excused = void.copy()
        for k, other in enumerate(true_masks):
            if truth.crowd[k] and truth.labels[k] == segment.class_:
                excused |= other
        if (mask & excused).sum() / mask.sum() <= 0.5:
            counts[segment.class_][2] += 1


def random_pair(seed: int) -> tuple[Truth, Panoptic]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, CLASSES + 1, 6)
    crowd = rng.random(6) < 0.25
    planes = np.repeat(np.repeat(rng.integers(0, 7, (6, 6)), 4, 0), 4, 1)
    found = np.where(rng.random(planes.shape) < 0.85, planes, rng.integers(0, 8, planes.shape))
    classes = np.concatenate([np.where(rng.random(6) < 0.7, labels, rng.integers(1, CLASSES + 1, 6)), [1]])
    segments = tuple(Segment(i + 1, int(c), 1.0) for i, c in enumerate(classes))
    return Truth(planes[None].astype(np.uint16), labels, crowd, True), Panoptic(found.astype(np.int32), segments)


def test_it_equals_the_definition_on_random_images_with_void_and_crowds() -> None:
    fast = PanopticQuality(CLASSES, THINGS)
    slow: dict[int, list[float]] = {c: [0.0, 0, 0, 0] for c in range(1, CLASSES + 1)}
    for seed in range(40):
        truth, found = random_pair(seed)
        fast.add(truth, found)
        slow_counts(truth, found, slow)
    per_class = fast.per_class()
    quality = {}
    for class_, (iou, tp, fp, fn) in slow.items():
        assert (per_class[class_]["TP"], per_class[class_]["FP"], per_class[class_]["FN"]) == (tp, fp, fn)
        quality[class_] = iou / (tp + 0.5 * fp + 0.5 * fn)
        assert per_class[class_]["PQ"] == pytest.approx(quality[class_], abs=1e-9)
        assert per_class[class_]["PQ"] == pytest.approx(per_class[class_]["SQ"] * per_class[class_]["RQ"])
    results = fast.results()
    assert min(tp for _, tp, _, _ in slow.values()) > 5  # the cases are not trivial
    assert results["PQ"] == pytest.approx(np.mean(list(quality.values())))
    assert results["PQ_things"] == pytest.approx((quality[1] + quality[2]) / 2)
    assert results["PQ_stuff"] == pytest.approx((quality[3] + quality[4]) / 2)


def case(truth_rows: list[list[int]], found_rows: list[list[int]], crowd: tuple[int, ...] = ()) -> dict[str, float]:
    """Segment k has class k, in truth and prediction."""
    planes, ids = np.array([truth_rows], dtype=np.uint16), np.array(found_rows, dtype=np.int32)
    labels = np.arange(1, planes.max() + 1)
    truth = Truth(planes, labels, np.isin(labels, crowd), True)
    segments = tuple(Segment(int(i), int(i), 1.0) for i in np.unique(ids) if i)
    quality = PanopticQuality(CLASSES, THINGS)
    quality.add(truth, Panoptic(ids, segments))
    return {**quality.results(), **{f"{c}_{k}": v for c, row in quality.per_class().items() for k, v in row.items()}}


def test_a_worked_example_gives_the_values_on_paper() -> None:
    found = case([[1, 1, 1, 1], [2, 2, 2, 2]], [[1, 1, 1, 2], [2, 2, 2, 2]])
    assert found["1_PQ"] == pytest.approx(3 / 4)
    assert found["2_PQ"] == pytest.approx(4 / 5)
    assert found["PQ"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert found["RQ"] == 1


def test_predicted_pixels_on_void_do_not_count_against_a_match() -> None:
    assert case([[1, 1, 0, 0]], [[1, 1, 1, 1]])["PQ"] == pytest.approx(1.0)


def test_a_prediction_mostly_on_void_or_on_a_crowd_of_its_class_is_forgiven() -> None:
    assert "2_FP" not in case([[1, 1, 0, 0]], [[1, 1, 2, 2]])
    crowded = case([[1, 1, 2, 2]], [[1, 1, 2, 0]], crowd=(2,))
    assert "2_FP" not in crowded
    assert crowded["PQ"] == pytest.approx(1.0)


def test_exactly_half_is_no_match() -> None:
    found = case([[1, 1, 2, 2]], [[1, 2, 2, 2]])
    assert (found["1_TP"], found["1_FP"], found["1_FN"]) == (0, 1, 1)
    assert found["2_TP"] == 1
