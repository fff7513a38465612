"""What the network's queries mean for one image: classes of pixels, instances, or a panoptic partition.

The rules are the original's (https://arxiv.org/abs/2112.01527, inference of MaskFormer and Mask2Former). Everything is
computed at the size of the original image, in stripes of rows, so that a large photo does not need Q masks at once.
Inputs of one image: class_logits [Q, C + 1] (class 0 is no object), mask_logits [Q, h, w] at stride 4, on the network's
device and in the precision of `readable`, which the resampler has too. The class logits are on the host: which queries
matter is decided there, because each such question to a GPU waits until it has done all that it was given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mask2former_mcp.engine.resample import Resampler
from mask2former_mcp.engine.run_lengths import RunLengths

STRIPE_ELEMENTS = 1 << 24  # mask values held at once: 64 MB in float32
WIDER = 2  # times as many on a GPU, which is idle between stripes; several such tensors lie beside the network


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


@dataclass(frozen=True, slots=True)
class Instances:
    """N objects, best first: classes [N], scores [N], and one compressed run-length mask each (COCO's form, bytes)."""

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    masks: Sequence[dict[str, Any]]


def readable(mask_logits: Tensor) -> Tensor:
    """In float32; but on a GPU those of half precision in float16, which its tensor cores multiply many times as fast.

    Not in bfloat16, whose three digits would make classes of about the same probability equal.
    """
    half = mask_logits.is_cuda and mask_logits.dtype in (torch.float16, torch.bfloat16)
    return mask_logits.half() if half else mask_logits.float()


def semantic(class_logits: Tensor, mask_logits: Tensor, resample: Resampler) -> NDArray[np.integer[Any]]:
    """[H, W] classes 1..C: the class with the largest sum over queries of class probability times mask probability."""
    weights = class_logits.float().softmax(-1)[:, 1:].T.to(mask_logits, non_blocking=True)
    out = torch.empty(resample.size, dtype=_smallest(len(weights)), device=mask_logits.device)
    for start, stop in stripes(resample, len(mask_logits) + len(weights)):
        logits = resample(mask_logits, start, stop)
        best = (weights @ logits.sigmoid().flatten(1)).view(-1, *logits.shape[1:]).max(0)
        found = best.indices
        if logits.dtype == torch.float16:  # where no query sees anything all sums are 0: what the least unlikely one is
            found = found.where(best.values > 0, weights.argmax(0)[logits.max(0).indices])
        out[start:stop] = found + 1
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
    scores, labels = class_logits.float().softmax(-1).max(-1)
    keep = ((labels != 0) & (scores > object_mask_threshold)).nonzero()[:, 0]
    scores, labels = scores[keep], labels[keep]
    if not len(labels):
        return Panoptic(np.zeros(resample.size, dtype=np.uint8), ())
    at, count = mask_logits.device, len(labels)
    grid = mask_logits[keep.to(at, non_blocking=True)]
    weights = scores.to(grid, non_blocking=True)[:, None, None]
    winner = torch.empty(resample.size, dtype=torch.long, device=at)
    inside = torch.empty(resample.size, dtype=torch.bool, device=at)
    own, won, left = torch.zeros(3, count, dtype=torch.long, device=at)
    for start, stop in stripes(resample, 2 * count):
        masks = resample(grid, start, stop).sigmoid()
        best = (masks * weights).max(0).indices  # on a CPU five times as fast as argmax
        within = masks.gather(0, best[None])[0] >= 0.5
        own += (masks >= 0.5).flatten(1).sum(1)
        won += _counts(best, count)
        left += _counts(best.where(within, count), count)
        winner[start:stop], inside[start:stop] = best, within
    own, won, left = torch.stack([own, won, left]).cpu()
    accepted = (left > 0) & (own > 0) & (won / own.clamp(min=1) >= overlap_threshold)
    table, segments = _segments(accepted.tolist(), labels.tolist(), scores.tolist(), things)
    ids = torch.tensor(table, dtype=_smallest(len(segments))).to(at, non_blocking=True)[winner] * inside
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
    min_score: pairs that cannot reach it, because their class probability does not, are dropped before their masks are
    made; among the rest some may still have less.
    """
    probabilities = class_logits.float().softmax(-1)[:, 1:]
    num_classes = probabilities.shape[1]
    scores, place = probabilities.flatten().topk(min(topk, probabilities.numel()))
    classes, query = place % num_classes + 1, place // num_classes
    keep = scores >= min_score
    if things is not None:
        keep &= torch.isin(classes, torch.tensor(sorted(things), dtype=classes.dtype))
    scores, classes, query = scores[keep], classes[keep], query[keep]
    used, mask_of = torch.unique(query, return_inverse=True)
    masks = RunLengths(resample.size)
    quality: list[Tensor] = []
    at, each = mask_logits.device, resample.size[0] * resample.size[1]
    for part in used.split(max(1, elements(at) // each)):
        logits = resample.transposed(mask_logits[part.to(at, non_blocking=True)])  # [K, W, H]
        inside = logits > 0
        sums = (logits.sigmoid() * inside).flatten(1).sum(1, dtype=torch.float32)
        quality.append(sums / (inside.flatten(1).sum(1) + 1e-6))
        masks.add(inside)
        del logits, inside  # before the next part is made
    if not quality:
        return Instances(np.zeros(0, dtype=np.int64), np.zeros(0), ())
    scores = scores * torch.cat(quality).cpu()[mask_of]
    order = scores.argsort(descending=True, stable=True)
    return Instances(
        classes[order].numpy(),
        scores[order].double().numpy(),
        masks.of(mask_of[order].tolist()),
    )


def _counts(numbers: Tensor, count: int) -> Tensor:
    """How often each of 0..count - 1 is there, among numbers up to `count`.

    On a GPU not by bincount, for which the host would wait, nor by scatter_add_, of which it does one after the other
    where all are alike. Exact to 2^24 of a number.
    """
    if numbers.device.type == "cpu":
        return numbers.flatten().bincount(minlength=count + 1)[:count]
    return torch.histc(numbers.float(), count + 1, 0, count + 1)[:count].long()


def stripes(resample: Resampler, planes: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) rows of the original, so many at once that `planes` planes of them fit into memory."""
    height, width = resample.size
    step = max(1, elements(resample.rows.device) // max(1, planes * width))
    for start in range(0, height, step):
        yield start, min(start + step, height)


def elements(device: torch.device) -> int:
    """Mask values to hold at once."""
    return STRIPE_ELEMENTS * (WIDER if device.type == "cuda" else 1)


def _smallest(largest: int) -> torch.dtype:
    """The smallest integer type up to `largest` that numpy and torch both compute with."""
    return next((t for t in (torch.uint8, torch.int16) if largest <= torch.iinfo(t).max), torch.int32)


def _segments(
    accepted: list[bool], labels: list[int], scores: list[float], things: frozenset[int]
) -> tuple[list[int], tuple[Segment, ...]]:
    """The segment id of each query (0 when dropped), and the segments. Stuff of one class shares its first segment."""
    table: list[int] = []
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for ok, class_, score in zip(accepted, labels, scores, strict=True):
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
