"""mIoU and pixel accuracy against counting by hand."""

import math

import numpy as np
import pytest

from mask2former_mcp.engine.metrics import SemanticIoU


def test_it_equals_counting_class_by_class_over_all_images() -> None:
    rng = np.random.default_rng(0)
    metric = SemanticIoU(5)
    truths, predictions = rng.integers(0, 5, (3, 20, 30)), rng.integers(1, 5, (3, 20, 30))
    for truth, prediction in zip(truths, predictions, strict=True):
        metric.add(truth, prediction)
    counted = truths > 0
    expected = []
    for class_ in (1, 2, 3, 4):  # class 5 occurs nowhere and has no IoU
        both = ((truths == class_) & (predictions == class_)).sum()
        either = (((truths == class_) | (predictions == class_)) & counted).sum()
        expected.append(both / either)
    assert metric.results()["mIoU"] == pytest.approx(np.mean(expected))
    assert metric.results()["ACC_all"] == pytest.approx((truths == predictions)[counted].mean())
    assert sorted(metric.per_class()) == [1, 2, 3, 4]


def test_void_pixels_count_nowhere() -> None:
    metric = SemanticIoU(2)
    metric.add(np.array([[1, 0]]), np.array([[1, 2]]))
    assert metric.results() == {"mIoU": 1.0, "ACC_all": 1.0}


def test_nothing_but_void_measures_nothing() -> None:
    metric = SemanticIoU(2)
    metric.add(np.zeros((2, 2), dtype=int), np.ones((2, 2), dtype=int))
    assert math.isnan(metric.results()["mIoU"])
