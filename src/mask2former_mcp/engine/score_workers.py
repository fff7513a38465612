"""Metrics counted in worker processes, an image at a time, while the network goes on.

Parts are merged in the order of the images, so that the numbers do not depend on the number of workers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from mask2former_mcp.engine import worker_pool
from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.loader import cores
from mask2former_mcp.engine.scoring import Outcome, Scores
from mask2former_mcp.engine.worker_pool import InOrder

FEW = 64  # images: for fewer, starting workers takes longer than they save


@contextmanager
def sharing(scores: Scores, images: int, workers: int) -> Iterator[InOrder | Scores]:
    """What to add `images` images to; after the block all of them are in `scores`. At most one worker a core."""
    workers = min(workers, cores())
    if workers < 1 or images < FEW:
        yield scores
        return
    with worker_pool.in_order(_count, scores.blank(), scores.merge, workers) as shared:
        yield shared


def _count(blank: Scores, truth: Truth, outcome: Outcome, index: int) -> Scores:
    part = deepcopy(blank)
    part.add(truth, outcome, index)
    return part
