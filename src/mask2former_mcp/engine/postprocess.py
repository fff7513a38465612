"""What the network's queries mean for one image: classes of pixels, instances, or a panoptic partition.

The rules are the original's (https://arxiv.org/abs/2112.01527, inference of MaskFormer and Mask2Former). Everything is
computed at the size of the original image, in stripes of rows, so that a large photo does not need Q masks at once.
Inputs of one image: class_logits [Q, C + 1] (class 0 is no object) on the host, where it is decided which queries
matter; mask_logits [Q, h, w] float32 at stride 4, on the network's device. On a GPU fused_interpreter.py looks at the
pixels in another way, and decides by the same functions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mask2former_mcp.engine import run_lengths
from mask2former_mcp.engine.resample import Resampler, Size
from mask2former_mcp.formats.extents import Extent, extents

STRIPE_ELEMENTS = 1 << 24  # mask values held at once: 64 MB in float32
WIDER = 4  # times as many on a GPU, which is idle between stripes


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a panoptic partition; `id` is its value in the map, from 1."""

    id: int
    class_: int
    score: float


@dataclass(frozen=True, slots=True)
class Panoptic:
    """ids [H, W] in the smallest integer type that holds them, 0 where nothing was found."""

    ids: NDArray[np.integer[Any]]
    segments: tuple[Segment, ...]
    _there: dict[int, Extent] = field(default_factory=dict, repr=False, compare=False)

    @property
    def extents(self) -> Mapping[int, Extent]:
        """Where each id is, looked for once."""
        if not self._there:
            self._there.update(extents(self.ids))
        return self._there


@dataclass(slots=True)
class Contest:
    """A `Panoptic` that is decided when it is read: by another process, where it is sent to one.

    winners [H, W]: which of Q queries has each pixel, Q where none; the rest: as in `partition`, of Q queries, where
    those that take no part have the score 0.
    """

    winners: NDArray[np.integer[Any]]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    areas: NDArray[Any]
    things: frozenset[int]
    overlap_threshold: float
    _decided: Panoptic | None = field(default=None, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent without what was decided, which is as large as the winners."""
        given = self.winners, self.labels, self.scores, self.areas, self.things, self.overlap_threshold
        return Contest, given

    @property
    def ids(self) -> NDArray[np.integer[Any]]:
        return self._panoptic().ids

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._panoptic().segments

    @property
    def extents(self) -> Mapping[int, Extent]:
        return self._panoptic().extents

    def _panoptic(self) -> Panoptic:
        if self._decided is None:
            keep = np.flatnonzero(self.scores)
            numbers, segments = partition(
                self.labels[keep],
                self.scores[keep],
                self.areas[:, keep],
                things=self.things,
                overlap_threshold=self.overlap_threshold,
            )
            table: NDArray[Any] = np.zeros(len(self.scores) + 1, dtype=self.winners.dtype)
            table[keep] = numbers
            self._decided = Panoptic(looked_up(table, self.winners), segments)
        return self._decided


Partition = Panoptic | Contest


@dataclass(frozen=True, slots=True)
class Instances:
    """N objects, best first: classes [N], scores [N], and one compressed run-length mask each (COCO's form, bytes)."""

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    masks: Sequence[dict[str, Any]]


def semantic(class_logits: Tensor, mask_logits: Tensor, resample: Resampler) -> NDArray[np.integer[Any]]:
    """[H, W] classes 1..C: the class with the largest sum over queries of class probability times mask probability."""
    weights = class_logits.softmax(-1)[:, 1:].T.to(mask_logits.device)
    out = torch.empty(resample.size, dtype=smallest(len(weights)), device=mask_logits.device)
    for start, stop in stripes(resample, len(mask_logits) + len(weights)):
        masks = resample(mask_logits, start, stop).sigmoid()
        out[start:stop] = (weights @ masks.flatten(1)).view(-1, *masks.shape[1:]).max(0).indices + 1
    return np.asarray(out.cpu().numpy())


def panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    resample: Resampler,
    *,
    things: frozenset[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> Panoptic:
    """Each pixel goes to the confident query with the largest class score times mask probability.

    A query whose won pixels are less than `overlap_threshold` of its own mask is dropped. Things get a segment per
    query, stuff one per class.
    """
    labels, scores = confident(class_logits.softmax(-1), object_mask_threshold)
    keep = scores.nonzero()[:, 0]
    labels, scores = labels[keep], scores[keep]
    if not len(keep):
        return Panoptic(np.zeros(resample.size, dtype=np.uint8), ())
    at, count = mask_logits.device, len(keep)
    grid, weights = mask_logits[keep.to(at)], scores.to(at)[:, None, None]
    winner = torch.empty(resample.size, dtype=torch.long, device=at)
    inside = torch.empty(resample.size, dtype=torch.bool, device=at)
    own, won, left = torch.zeros(3, count, dtype=torch.long, device=at)
    for start, stop in stripes(resample, 2 * count):
        masks = resample(grid, start, stop).sigmoid()
        best = (masks * weights).max(0).indices  # on a CPU five times as fast as argmax
        within = masks.gather(0, best[None])[0] >= 0.5
        own += (masks >= 0.5).flatten(1).sum(1)
        won += best.flatten().bincount(minlength=count)
        left += best[within].bincount(minlength=count)
        winner[start:stop], inside[start:stop] = best, within
    areas = torch.stack([own, won, left]).cpu().numpy()
    table, segments = partition(
        labels.numpy(), scores.numpy(), areas, things=things, overlap_threshold=overlap_threshold
    )
    ids = torch.tensor(table, dtype=smallest(len(segments)), device=at)[winner] * inside
    return Panoptic(ids.cpu().numpy(), segments)


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    resample: Resampler,
    *,
    topk: int,
    things: frozenset[int] | None = None,
    min_score: float = 0.0,
) -> Instances:
    """The `topk` best (query, class) pairs; score = class probability times mean mask probability inside the mask.

    One query may appear with several classes; its mask is computed once. things: only these classes stay, where given.
    min_score: pairs with less are dropped, before their masks are made where their class probability is less already.
    """
    scores, classes, query = candidates(class_logits.softmax(-1).numpy(), topk=topk, things=things, min_score=min_score)
    used, mask_of = np.unique(query, return_inverse=True)
    quality = [np.zeros(0, dtype=np.float32)]

    def insides() -> Iterator[Tensor]:
        for part in torch.split(torch.from_numpy(used), at_once(resample.size, mask_logits.device)):
            logits = resample.transposed(mask_logits[part.to(mask_logits.device)])  # [K, W, H]
            inside = logits > 0
            sums = (logits.sigmoid() * inside).flatten(1).sum(1)
            quality.append((sums / (inside.flatten(1).sum(1) + 1e-6)).cpu().numpy())
            del logits  # before the next part is made
            yield inside

    masks = run_lengths.encode(insides(), resample.size, mask_logits.device)
    scores = scores * np.concatenate(quality)[mask_of]
    order = ranked(scores, min_score)
    return Instances(classes[order], scores[order].astype(float), run_lengths.pick(masks, mask_of[order].tolist()))


def confident(probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """[..., Q, C + 1] -> classes and scores of the queries [..., Q]; scores are 0 where one takes no part in a panoptic
    partition."""
    scores, labels = probabilities.max(-1)
    return labels, scores.where((labels != 0) & (scores > threshold), 0)


def partition(
    labels: NDArray[np.int64],
    scores: NDArray[np.float32],
    areas: NDArray[Any],
    *,
    things: frozenset[int],
    overlap_threshold: float,
) -> tuple[list[int], tuple[Segment, ...]]:
    """The segment id of each of K queries (0 when dropped), and the segments. Stuff of one class shares its first one.

    areas [3, K]: pixels of the query's own mask, those that it won, and those of them that its own mask has.
    """
    own, won, left = areas
    accepted = (left > 0) & (own > 0) & (won / np.maximum(own, 1) >= overlap_threshold)
    table: list[int] = []
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for ok, class_, score in zip(accepted.tolist(), labels.tolist(), scores.tolist(), strict=True):
        if not ok:
            table.append(0)
        elif class_ in stuff:
            table.append(stuff[class_])
        else:
            segments.append(Segment(len(segments) + 1, class_, score))
            table.append(len(segments))
            if class_ not in things:
                stuff[class_] = len(segments)
    return table, tuple(segments)


def candidates(
    probabilities: NDArray[np.float32], *, topk: int, things: frozenset[int] | None, min_score: float
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """[Q, C + 1] -> scores, classes and queries of the `topk` most probable pairs, without those not wanted."""
    pairs, num_classes = probabilities[:, 1:].ravel(), probabilities.shape[1] - 1
    place = np.flatnonzero(pairs >= min_score)
    if len(place) > topk:
        place = place[np.argpartition(-pairs[place], topk)[:topk]]
    place = place[np.argsort(-pairs[place], kind="stable")]
    query, classes = np.divmod(place, num_classes)
    classes += 1
    if things is not None:
        keep = _table(things, num_classes)[classes]
        place, classes, query = place[keep], classes[keep], query[keep]
    return pairs[place], classes, query


@lru_cache(maxsize=4)
def _table(things: frozenset[int], num_classes: int) -> NDArray[np.bool_]:
    """[C + 1] whether a class is among them."""
    return np.isin(np.arange(num_classes + 1), sorted(things))


def ranked(scores: NDArray[np.float32], min_score: float) -> NDArray[np.int64]:
    """The places of those that reach `min_score`, best first."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= min_score]


def stripes(resample: Resampler, planes: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) rows of the original, so many at once that `planes` planes of them fit into memory."""
    height, width = resample.size
    step = max(1, elements(resample.rows.device) // max(1, planes * width))
    for start in range(0, height, step):
        yield start, min(start + step, height)


def at_once(size: Size, device: torch.device) -> int:
    """Masks of (height, width) `size` that fit into memory together; one at least."""
    return max(1, elements(device) // (size[0] * size[1]))


def elements(device: torch.device) -> int:
    """Mask values to hold at once."""
    return STRIPE_ELEMENTS * (WIDER if device.type == "cuda" else 1)


def looked_up(table: NDArray[Any], places: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """table[places], of bytes five times as fast."""
    found: NDArray[Any] = cv2.LUT(places, np.resize(table, 256)) if places.dtype == np.uint8 else table[places]
    return found


def smallest(largest: int) -> torch.dtype:
    """The smallest integer type up to `largest` that numpy and torch both compute with."""
    return next((t for t in (torch.uint8, torch.int16) if largest <= torch.iinfo(t).max), torch.int32)
