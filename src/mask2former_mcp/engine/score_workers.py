"""Metrics counted in worker processes, an image at a time, while the network goes on.

Only so many images are under way at once that memory stays bounded: whoever adds one more waits for the oldest. Parts
are merged in the order of the images, so that the numbers do not depend on the number of workers.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING

from mask2former_mcp.engine import interruption
from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.loader import cores

if TYPE_CHECKING:
    from mask2former_mcp.engine.scoring import Outcome, Scores

AHEAD = 3  # images under way for each worker
FEW = 64  # images: for fewer, starting workers takes longer than they save


class Shared:
    """Takes images like `Scores.add` and has them counted elsewhere."""

    def __init__(self, scores: Scores, pool: ProcessPoolExecutor, most: int) -> None:
        self._scores, self._pool, self._most = scores, pool, most
        self._pending: deque[Future[Scores]] = deque()

    def add(self, truth: Truth, outcome: Outcome, index: int) -> None:
        """Raises what counting an earlier image raised."""
        while len(self._pending) >= self._most:
            self._take()
        self._pending.append(self._pool.submit(_count, truth, outcome, index))

    def finish(self) -> None:
        """Returns when all are in the scores."""
        while self._pending:
            self._take()

    def _take(self) -> None:
        self._scores.merge(self._pending.popleft().result())


@contextmanager
def sharing(scores: Scores, images: int, workers: int) -> Iterator[Shared | Scores]:
    """What to add `images` images to; after the block all of them are in `scores`. At most one worker a core."""
    workers = min(workers, cores())
    if workers < 1 or images < FEW:
        yield scores
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(scores.blank(),))
    try:
        shared = Shared(scores, pool, AHEAD * workers)
        yield shared
        shared.finish()
    finally:
        pool.shutdown(cancel_futures=True)


_blank: Scores  # of this worker process: what an image is added to


def _start(blank: Scores) -> None:
    global _blank
    interruption.ignore()
    _blank = blank


def _count(truth: Truth, outcome: Outcome, index: int) -> Scores:
    part = deepcopy(_blank)
    part.add(truth, outcome, index)
    return part
