"""The interpreter for a GPU: kernels look at the pixels of all images of a batch that have one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mask2former_mcp.engine import postprocess, resample, run_lengths
from mask2former_mcp.engine.kernels import pixels
from mask2former_mcp.engine.model.network import Prediction
from mask2former_mcp.engine.postprocess import Contest, Instances
from mask2former_mcp.engine.resample import Resampler, Size, Taps
from mask2former_mcp.engine.run_lengths import RunLengths
from mask2former_mcp.engine.scoring import Outcome
from mask2former_mcp.spec.model import Model

Numbers = NDArray[Any]


class Part(NamedTuple):
    """Images of a batch that are looked at together: their places in it, their size at the network and the original
    one; early: whether what is seen of them fits into memory together with that of all parts before."""

    places: list[int]
    inner: Size
    original: Size
    early: bool


class Looked(NamedTuple):
    """What a device has been asked of B images of one size, on the host when `done` has come.

    sizes: as `resample` takes them; taps: what it gave, which stay until they have been read. What the host decides by:
    sums as in `pixels.Seen`, probabilities [B, Q, C + 1], of `postprocess.confident` labels and scores [B, Q]. Its
    maps: classes and winners of `pixels.Seen`, None as there.
    """

    grids: Tensor
    sizes: tuple[Size, Size, Size, Size, torch.device]
    taps: tuple[Taps, Taps]
    sums: Numbers
    probabilities: Numbers
    labels: Numbers
    scores: Numbers
    classes: Numbers | None
    winners: Numbers | None
    done: torch.cuda.Event | None


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
        return self.begin(prediction, kept, padded, originals)()

    def begin(
        self, prediction: Prediction, kept: Sequence[Size], padded: Size, originals: Sequence[Size]
    ) -> Callable[[], list[Outcome]]:
        """Has the device look at the parts that are `early`. What is returned does the rest, once, in the same stream;
        it holds the prediction and what was seen."""
        parts = _parts(kept, originals, prediction.mask_features.device) if kept else []

        def look(part: Part) -> Looked:
            return self._look(_of(prediction, part.places), part.inner, padded, part.original)

        early = [look(part) for part in parts if part.early]

        def finish() -> list[Outcome]:
            outcomes: dict[int, Outcome] = {}
            for part, looked in zip_longest(parts, early):
                outcomes.update(zip(part.places, self._outcomes(looked or look(part)), strict=True))
            return [outcomes[b] for b in range(len(kept))]

        return finish

    def _look(self, prediction: Prediction, kept: Size, padded: Size, original: Size) -> Looked:
        mode, (_, _, h, w) = self.model.mode, prediction.mask_features.shape
        sizes = (h, w), padded, kept, original, prediction.mask_features.device
        logits = prediction.mask_features.flatten(2).transpose(1, 2) @ prediction.mask_embeddings[-1].transpose(1, 2)
        grids = (logits.half() if logits.dtype == torch.bfloat16 else logits).view(len(logits), h, w, -1)
        probabilities = prediction.class_logits[-1].float().softmax(-1)
        labels, scores = postprocess.confident(probabilities, self.model.object_mask_threshold)
        weights = None if mode == "instance" else probabilities[..., 1:]
        taps = resample.taps(*sizes)
        seen = pixels.look(grids, *taps, weights, scores if mode == "panoptic" else None)
        return Looked(
            grids,
            sizes,
            taps,
            _copied(seen.sums),
            _copied(probabilities),
            _copied(labels),
            _copied(scores),
            None if seen.classes is None else _copied(seen.classes),
            None if seen.winners is None else _copied(seen.winners),
            _event(grids.device),
        )

    def _outcomes(self, looked: Looked) -> Iterable[Outcome]:
        if looked.done is not None:
            looked.done.synchronize()
        blank: list[None] = [None] * len(looked.grids)
        classes = blank if looked.classes is None else looked.classes
        panoptic = blank if looked.winners is None else self._contests(looked.winners, looked)
        instances = blank if self.model.mode == "semantic" else self._instances(looked)
        return map(Outcome, classes, panoptic, instances)

    def _contests(self, winners: Numbers, looked: Looked) -> Iterator[Contest]:
        areas = looked.sums[:, :3]
        for each in zip(winners, looked.labels, looked.scores, areas, strict=True):
            yield Contest(*each, self.things, self.model.overlap_threshold)

    def _instances(self, looked: Looked) -> list[Instances]:
        """As `postprocess.instances`, but what a mask is worth is known before it is made."""
        resampler = resample.to_original(*looked.sizes, looked.grids.dtype)
        found, wanted = [], []
        for probability, (*_, area, inside) in zip(looked.probabilities, looked.sums, strict=True):
            scores, classes, query = postprocess.candidates(
                probability, topk=self.model.test_topk_per_image, things=self.things, min_score=self.min_score
            )
            scores = scores * (inside / (area + 1e-6)).astype(np.float32)[query]
            order = postprocess.ranked(scores, self.min_score)
            used, mask_of = np.unique(query[order], return_inverse=True)
            found.append((classes[order], scores[order].astype(float), mask_of.tolist()))
            wanted.append(used)
        masks = _masks(looked.grids, wanted, resampler)
        return [
            Instances(classes, scores, RunLengths(resampler.size, *own, mask_of))
            for (classes, scores, mask_of), own in zip(found, masks, strict=True)
        ]


def _parts(kept: Sequence[Size], originals: Sequence[Size], device: torch.device) -> list[Part]:
    """Of all images of a batch."""
    alike: dict[tuple[Size, Size], list[int]] = {}
    for b, sizes in enumerate(zip(kept, originals, strict=True)):
        alike.setdefault(sizes, []).append(b)
    parts: list[Part] = []
    room = postprocess.elements(device)
    for (inner, original), places in alike.items():
        most = postprocess.at_once(original, device)
        for some in (places[at : at + most] for at in range(0, len(places), most)):
            room -= len(some) * original[0] * original[1]
            parts.append(Part(some, inner, original, early=not parts or room >= 0))
    return parts


def _of(prediction: Prediction, places: list[int]) -> Prediction:
    """Some images of a batch; the first ones without copying them."""
    if places == list(range(len(places))):
        class_logits, embeddings, features = (part.narrow(axis, 0, len(places)) for part, axis in _by_image(prediction))
    else:  # piece by piece: a list of places would be copied to the device, for which the host waits
        class_logits, embeddings, features = (
            torch.cat([part.narrow(axis, place, 1) for place in places], axis) for part, axis in _by_image(prediction)
        )
    return Prediction(class_logits, embeddings, features)


def _by_image(prediction: Prediction) -> Iterator[tuple[Tensor, int]]:
    """Its parts and their axes of images."""
    return zip(prediction, (1, 1, 0), strict=True)


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
    """On the host when what this stream was given is done; in pinned memory, which PyTorch keeps for the next ones:
    fresh pages would take longer."""
    if tensor.device.type == "cpu":
        return tensor.numpy()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True).numpy()


def _event(device: torch.device) -> torch.cuda.Event | None:
    """The end of what this stream was given. Who waits for it keeps no core busy that others need."""
    if device.type != "cuda":
        return None
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(device))
    return done
