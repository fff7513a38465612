"""The interpreter for a GPU: kernels look at the pixels of all images of a batch that have one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mask2former_mcp.engine import postprocess, resample, run_lengths
from mask2former_mcp.engine.kernels import pixels
from mask2former_mcp.engine.model.network import Prediction
from mask2former_mcp.engine.postprocess import Instances, Panoptic
from mask2former_mcp.engine.resample import Resampler, Size
from mask2former_mcp.engine.run_lengths import RunLengths
from mask2former_mcp.engine.scoring import Outcome
from mask2former_mcp.spec.model import Model

Numbers = NDArray[Any]


class Told(NamedTuple):
    """What the host decides by, of B images: sums as in `pixels.Seen`, probabilities [B, Q, C + 1], and of
    `postprocess.confident` labels and scores [B, Q]."""

    sums: Numbers
    probabilities: Numbers
    labels: Numbers
    scores: Numbers


@dataclass(frozen=True, slots=True)
class FusedInterpreter:
    """Equal to `scoring.Interpreter` up to rounding: mask logits stay in half precision where they come in it.

    The same decisions are made by the same functions, on the host, which waits as rarely as it can.
    """

    model: Model
    things: frozenset[int]
    min_score: float = 0.0

    def __call__(
        self, prediction: Prediction, kept: Sequence[Size], padded: Size, originals: Sequence[Size]
    ) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        alike: dict[tuple[Size, Size], list[int]] = {}
        for b, sizes in enumerate(zip(kept, originals, strict=True)):
            alike.setdefault(sizes, []).append(b)
        for (inner, original), places in alike.items():
            most = postprocess.at_once(original, prediction.mask_features.device)
            for some in (places[at : at + most] for at in range(0, len(places), most)):
                found = self._of_one_size(_of(prediction, some), inner, padded, original)
                outcomes.update(zip(some, found, strict=True))
        return [outcomes[b] for b in range(len(kept))]

    def _of_one_size(self, prediction: Prediction, kept: Size, padded: Size, original: Size) -> Iterator[Outcome]:
        mode, (_, _, h, w) = self.model.mode, prediction.mask_features.shape
        sizes = (h, w), padded, kept, original, prediction.mask_features.device
        logits = prediction.mask_features.flatten(2).transpose(1, 2) @ prediction.mask_embeddings[-1].transpose(1, 2)
        grids = (logits.half() if logits.dtype == torch.bfloat16 else logits).view(len(logits), h, w, -1)
        probabilities = prediction.class_logits[-1].float().softmax(-1)
        labels, scores = postprocess.confident(probabilities, self.model.object_mask_threshold)
        weights = None if mode == "instance" else probabilities[..., 1:]
        seen = pixels.look(grids, *resample.taps(*sizes), weights, scores if mode == "panoptic" else None)
        told = Told(*map(_copied, (seen.sums, probabilities, labels, scores)))
        blank: list[None] = [None] * len(grids)
        classes = blank if seen.classes is None else _copied(seen.classes)
        _wait(grids.device)
        panoptic = blank if seen.winners is None else self._panoptic(seen.winners, told)
        instances = blank if mode == "semantic" else self._instances(grids, sizes, told)
        _wait(grids.device)
        return map(Outcome, classes, panoptic, instances)

    def _panoptic(self, winners: Tensor, told: Told) -> list[Panoptic]:
        """Its maps are there when the device has been waited for."""
        images, queries = told.scores.shape
        tables = torch.zeros(images, queries + 1, dtype=postprocess.smallest(queries))
        segments = []
        for table, label, score, areas in zip(tables.numpy(), told.labels, told.scores, told.sums[:, :3], strict=True):
            keep = np.flatnonzero(score)
            table[keep], found = postprocess.partition(
                label[keep],
                score[keep],
                areas[:, keep],
                things=self.things,
                overlap_threshold=self.model.overlap_threshold,
            )
            segments.append(found)
        first = torch.arange(0, tables.numel(), queries + 1, dtype=torch.int32, device=winners.device)
        numbers = (winners.flatten(1) + first[:, None]).flatten()
        on_device = tables.flatten().to(winners.device, non_blocking=True)
        ids = _copied(on_device.index_select(0, numbers).view(winners.shape))
        return [Panoptic(*each) for each in zip(ids, segments, strict=True)]

    def _instances(self, grids: Tensor, sizes: Any, told: Told) -> list[Instances]:
        """As `postprocess.instances`, but what a mask is worth is known before it is made."""
        resampler = resample.to_original(*sizes, grids.dtype)
        found, wanted = [], []
        for probability, (*_, area, inside) in zip(told.probabilities, told.sums, strict=True):
            scores, classes, query = postprocess.candidates(
                probability, topk=self.model.test_topk_per_image, things=self.things, min_score=self.min_score
            )
            scores = scores * (inside / (area + 1e-6)).astype(np.float32)[query]
            order = postprocess.ranked(scores, self.min_score)
            used, mask_of = np.unique(query[order], return_inverse=True)
            found.append((classes[order], scores[order].astype(float), mask_of.tolist()))
            wanted.append(used)
        masks = _masks(grids, wanted, resampler)
        return [
            Instances(classes, scores, RunLengths(resampler.size, *own, mask_of))
            for (classes, scores, mask_of), own in zip(found, masks, strict=True)
        ]


def _of(prediction: Prediction, places: list[int]) -> Prediction:
    """Some images of a batch; the first ones without copying them."""
    at: Any = slice(len(places)) if places == list(range(len(places))) else places
    class_logits, embeddings, features = prediction
    return Prediction(class_logits[:, at], embeddings[:, at], features[at])


def _masks(
    grids: Tensor, queries: Sequence[Numbers], resampler: Resampler
) -> Iterator[tuple[NDArray[np.int32], list[int]]]:
    """For each image the borders of the masks of these queries, as `RunLengths` has them."""
    counts = [len(each) for each in queries]
    numbered = np.stack([np.repeat(np.arange(len(counts)), counts), np.concatenate(queries)], 1)
    pairs = torch.from_numpy(numbered).to(grids.device, non_blocking=True)
    parts = torch.split(pairs, postprocess.at_once(resampler.size, pairs.device))
    some = (grids[part[:, 0], :, :, part[:, 1]] for part in parts)
    places, bounds = run_lengths.borders(resampler.transposed(grid) > 0 for grid in some)
    last = 0
    for count in counts:
        first, last = last, last + count
        yield places[bounds[first] : bounds[last]], [at - bounds[first] for at in bounds[first : last + 1]]


def _copied(tensor: Tensor) -> Numbers:
    """On the host when `_wait` has returned; in pinned memory, which PyTorch keeps for the next ones: fresh pages would
    take longer."""
    if tensor.device.type == "cpu":
        return tensor.numpy()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True).numpy()


def _wait(device: torch.device) -> None:
    """For what this stream was given, without keeping a core busy that others need."""
    if device.type == "cuda":
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(device))
        done.synchronize()
