"""Batches of photos come out of the segmenter as they went in, each with the outcomes of its own photos."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.engine.photos import Shots, Unreadable
from mask2former_mcp.engine.scoring import Outcome
from mask2former_mcp.engine.segmenting import Segmenter

CPU = torch.device("cpu")


class Brightest(nn.Module):
    """Stands for a network: the largest value of each image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.amax((1, 2, 3))


def interpret(prediction: Any, kept: Any, padded: Any, originals: Any) -> list[Outcome]:
    return [Outcome(np.full(size, int(value))) for size, value in zip(originals, prediction, strict=False)]


def shots(*indices: int, blank: int = 0) -> Shots:
    images = torch.zeros(len(indices) + blank, 3, 4, 6, dtype=torch.uint8)
    for place, index in enumerate(indices):
        images[place] = index
    unreadable = [] if indices else [Unreadable(9, "torn")]
    return Shots(
        images, list(indices), [(4, 6)] * len(indices), [(8, 12)] * len(indices), [None] * len(indices), unreadable
    )


def test_every_batch_comes_out_in_order_with_its_own_outcomes() -> None:
    segmenter = Segmenter(Brightest(), interpret, Normalize([0.0] * 3, [1 / 255] * 3), CPU)
    batches = [shots(1, 2), shots(), shots(3, blank=1), shots(4, 5)]
    found = list(segmenter(batches))
    assert [one for one, _ in found] == batches
    assert [[int(o.semantic.max()) for o in outcomes] for _, outcomes in found] == [[1, 2], [], [3], [4, 5]]
    assert found[0][1][0].semantic.shape == (8, 12)


def test_no_batch_is_no_outcome() -> None:
    assert not list(Segmenter(Brightest(), interpret, Normalize([0.0] * 3, [1.0] * 3), CPU)([]))
