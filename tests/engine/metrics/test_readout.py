"""The read-out of queries, in stripes and at original size, against the published rules written out slowly."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former_mcp.engine import postprocess
from mask2former_mcp.engine.resample import Resampler, to_original

GRID, PADDED, KEPT, ORIGINAL = (12, 16), (48, 64), (41, 64), (67, 101)
THINGS = frozenset({1, 3})
CPU = torch.device("cpu")


@pytest.fixture(params=range(4))
def query_outputs(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Confident queries with blob-shaped masks: class logits [Q, C + 1], mask logits [Q, h, w]."""
    generator = torch.Generator().manual_seed(request.param)
    classes = torch.randn(10, 5, generator=generator) * 4
    coarse = torch.randn(10, 1, 4, 4, generator=generator) * 8 - 8
    return classes, F.interpolate(coarse, size=GRID, mode="bilinear")[:, 0]


@pytest.fixture(autouse=True)
def small_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "STRIPE_ELEMENTS", 5000)  # several stripes even for a small image


def resized(masks: Tensor) -> Tensor:
    """The published two steps: to the padded input, cut, to the original."""
    up = F.interpolate(masks[None], size=PADDED, mode="bilinear", align_corners=False)[:, :, : KEPT[0], : KEPT[1]]
    return F.interpolate(up, size=ORIGINAL, mode="bilinear", align_corners=False)[0]


def resampler() -> Resampler:
    return to_original(GRID, PADDED, KEPT, ORIGINAL, CPU)


def test_one_product_per_axis_equals_both_resizes(query_outputs: tuple[Tensor, Tensor]) -> None:
    masks = query_outputs[1]
    torch.testing.assert_close(resampler()(masks), resized(masks), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(resampler()(masks, 10, 25), resized(masks)[:, 10:25], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(resampler().transposed(masks), resized(masks).transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_semantic_is_the_best_sum_over_queries(query_outputs: tuple[Tensor, Tensor]) -> None:
    classes, masks = query_outputs
    scores = torch.einsum("qc,qhw->chw", classes.softmax(-1)[:, 1:], resized(masks).sigmoid())
    found = postprocess.semantic(classes, masks, resampler())
    assert found.min() >= 1
    assert (found == scores.argmax(0).numpy() + 1).mean() > 0.999


def slow_panoptic(classes: Tensor, masks: Tensor, threshold: float, overlap: float) -> tuple[np.ndarray, list[int]]:
    scores, labels = classes.softmax(-1).max(-1)
    keep = (labels != 0) & (scores > threshold)
    probabilities = resized(masks[keep]).sigmoid()
    winner = (probabilities * scores[keep][:, None, None]).argmax(0)
    ids, found, stuff = np.zeros(ORIGINAL, dtype=np.int32), [], {}
    for k, label in enumerate(labels[keep].tolist()):
        inside = probabilities[k] >= 0.5
        mask = (winner == k) & inside
        if not (mask.any() and inside.any() and (winner == k).sum() / inside.sum() >= overlap):
            continue
        if label not in THINGS and label in stuff:
            ids[mask.numpy()] = stuff[label]
            continue
        found.append(label)
        ids[mask.numpy()] = len(found)
        if label not in THINGS:
            stuff[label] = len(found)
    return ids, found


def test_panoptic_follows_the_published_loop(query_outputs: tuple[Tensor, Tensor]) -> None:
    classes, masks = query_outputs
    found = postprocess.panoptic(
        classes, masks, resampler(), things=THINGS, object_mask_threshold=0.4, overlap_threshold=0.5
    )
    ids, expected = slow_panoptic(classes, masks, 0.4, 0.5)
    assert expected
    assert [s.class_ for s in found.segments] == expected
    assert (found.ids == ids).mean() > 0.999


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_a_contest_is_decided_where_it_is_read_as_it_would_have_been_at_once(dtype: type) -> None:
    rng = np.random.default_rng(0)
    winners = rng.integers(0, 7, (20, 30)).astype(dtype)  # of queries 0..5, or 6: of none
    labels, scores = np.array([3, 2, 1, 2, 9, 1]), np.array([0.9, 0.8, 0.7, 0.0, 0.6, 0.5], dtype=np.float32)
    won = np.bincount(winners.ravel(), minlength=7)[:6]
    areas = np.stack([won * [1, 1, 1, 1, 9, 1], won, won])  # of query 4's mask others have won the most
    rule = {"things": frozenset({2, 3}), "overlap_threshold": 0.5}
    contest = postprocess.Contest(winners, labels, scores, areas, **rule)
    there = pickle.loads(pickle.dumps(contest))
    assert [(s.id, s.class_) for s in there.segments] == [(1, 3), (2, 2), (3, 1)]
    wanted = np.array([1, 2, 3, 0, 0, 3, 0])[winners]  # class 1 is stuff, one segment for both of its queries
    np.testing.assert_array_equal(there.ids, wanted)
    assert there.ids.dtype == dtype
    assert there.extents[2].area == (wanted == 2).sum()


def test_panoptic_of_nothing_confident_is_empty(query_outputs: tuple[Tensor, Tensor]) -> None:
    found = postprocess.panoptic(
        *query_outputs, resampler(), things=THINGS, object_mask_threshold=1.0, overlap_threshold=0.5
    )
    assert found.segments == ()
    assert not found.ids.any()


def test_a_query_that_is_not_a_number_takes_no_part(query_outputs: tuple[Tensor, Tensor]) -> None:
    probabilities = query_outputs[0].softmax(-1)
    _, scores = postprocess.confident(probabilities, 0.3)
    probabilities[3] = torch.nan
    _, found = postprocess.confident(probabilities, 0.3)
    assert found[3] == 0
    assert found.nonzero().tolist() == [[q] for q in scores.nonzero()[:, 0].tolist() if q != 3]


def test_instances_are_the_best_pairs_with_mask_quality(query_outputs: tuple[Tensor, Tensor]) -> None:
    classes, masks = query_outputs
    found = postprocess.instances(classes, masks, resampler(), topk=15, things=THINGS)
    probabilities = classes.softmax(-1)[:, 1:]
    expected = []
    for score, place in zip(*probabilities.flatten().topk(15), strict=True):
        query, class_ = int(place) // 4, int(place) % 4 + 1
        if class_ in THINGS:
            logits = resized(masks)[query]
            inside = logits > 0
            quality = (logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6)
            expected.append((float(score * quality), class_, inside.numpy()))
    expected.sort(key=lambda row: -row[0])
    assert found.scores == pytest.approx([row[0] for row in expected], abs=1e-4)
    assert found.classes.tolist() == [row[1] for row in expected]
    for mask, row in zip(found.masks, expected, strict=True):
        assert (coco_mask.decode(mask).astype(bool) == row[2]).mean() > 0.999


def test_instances_that_cannot_reach_the_least_score_are_dropped_and_no_others(
    query_outputs: tuple[Tensor, Tensor],
) -> None:
    every = postprocess.instances(*query_outputs, resampler(), topk=40)
    least = float(np.median(every.scores))
    some = postprocess.instances(*query_outputs, resampler(), topk=40, min_score=least)
    wanted = [i for i, score in enumerate(every.scores) if score >= least]
    found = [i for i, score in enumerate(some.scores) if score >= least]
    assert len(wanted) <= len(some.scores) < len(every.scores)
    assert some.classes[found].tolist() == every.classes[wanted].tolist()
    assert some.scores[found] == pytest.approx(every.scores[wanted], abs=0)
    assert [some.masks[i] for i in found] == [every.masks[i] for i in wanted]


@pytest.mark.parametrize(("classes", "dtype"), [(255, "uint8"), (256, "int16"), (40_000, "int32")])
def test_maps_come_in_the_smallest_type_that_holds_their_values(classes: int, dtype: str) -> None:
    logits = torch.zeros(2, classes + 1)
    logits[:, -1] = 20.0
    masks = torch.full((2, 3, 4), 5.0)
    found = postprocess.semantic(logits, masks, to_original((3, 4), (12, 16), (12, 16), (5, 6), CPU))
    assert found.dtype == dtype
    assert (found == classes).all()
