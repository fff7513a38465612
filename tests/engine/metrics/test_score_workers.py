"""Metrics counted by worker processes: the same numbers, bounded memory, and errors that are told."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask2former_mcp.engine import score_workers
from mask2former_mcp.engine.classes import Classes, Entry
from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.postprocess import Instances, Panoptic, Segment
from mask2former_mcp.engine.score_workers import FEW, sharing
from mask2former_mcp.engine.scoring import Outcome, Scores
from mask2former_mcp.engine.worker_pool import AHEAD

SIDE = 24


def scores() -> Scores:
    return Scores("panoptic", "coco_panoptic", Classes(tuple(Entry(i, f"c{i}", i < 3, (0, 0, 0)) for i in range(1, 4))))


def image(seed: int) -> tuple[Truth, Outcome]:
    rng = np.random.default_rng(seed)
    planes = np.repeat(np.repeat(rng.integers(0, 4, (6, 6)), 4, 0), 4, 1)
    truth = Truth(planes[None].astype(np.uint16), np.array([1, 2, 3]), np.zeros(3, dtype=bool), True)
    found = np.where(rng.random((SIDE, SIDE)) < 0.8, planes, 0).astype(np.int32)
    masks = tuple(coco_mask.encode(np.asfortranarray((found == k).astype(np.uint8))) for k in (1, 2))
    segments = tuple(Segment(k, k, 1.0) for k in (1, 2, 3))
    instances = Instances(np.array([1, 2]), np.full(2, 0.5), masks)
    return truth, Outcome(np.maximum(found, 1), Panoptic(found, segments), instances)


def test_the_numbers_are_the_same_for_any_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_workers, "cores", lambda: 3)
    images = [image(seed) for seed in range(FEW)]
    measured = []
    for workers in (0, 1, 3):
        counted = scores()
        with sharing(counted, len(images), workers) as shared:
            assert (shared is counted) == (workers == 0)
            for index, (truth, outcome) in enumerate(images):
                shared.add(truth, outcome, index)
        measured.append((counted.results(), counted.per_class()))
    assert measured[0][0]["PQ"] > 0.3
    assert {"mIoU", "PQ", "AP"} <= measured[0][0].keys()
    for results, per_class in measured[1:]:
        assert results == pytest.approx(measured[0][0], abs=1e-12)
        assert per_class.keys() == measured[0][1].keys()


def test_only_so_many_images_are_under_way_at_once() -> None:
    counted = scores()
    with sharing(counted, FEW, 1) as shared:
        for index in range(FEW):
            shared.add(*image(index), index)
            assert len(shared._pending) <= AHEAD  # type: ignore[union-attr]


def test_what_a_worker_raises_reaches_the_caller() -> None:
    truth, outcome = image(0)
    broken = Truth(truth.planes[:, :4], truth.labels, truth.crowd, True)
    with pytest.raises(ValueError, match=r"shape|broadcast|index"), sharing(scores(), FEW, 1) as shared:
        shared.add(broken, outcome, 0)
