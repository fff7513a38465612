"""Work done in processes beside the network, their results taken in the order of the tasks.

Only so many tasks are under way at once that memory stays bounded: whoever adds one more waits for the oldest. On
Linux the processes are forked, which costs no start and shares what the tasks need; they must touch neither CUDA nor
threads that were there before.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from mask2former_mcp.engine import interruption

AHEAD = 3  # tasks under way for each process


class InOrder:
    """Takes tasks. Made by `in_order`."""

    def __init__(self, pool: ProcessPoolExecutor, work: Callable[..., Any], take: Callable[[Any], None], most: int):
        self._pool, self._work, self._receive, self._most = pool, work, take, most
        self._pending: deque[Future[Any]] = deque()

    def add(self, *task: Any) -> None:
        """Raises what an earlier task raised."""
        while len(self._pending) >= self._most:
            self._take()
        with _explained():
            self._pending.append(self._pool.submit(_do, self._work, *task))

    def finish(self) -> None:
        """Returns when all results have been taken."""
        while self._pending:
            self._take()

    def _take(self) -> None:
        with _explained():
            done = self._pending.popleft().result()
        self._receive(done)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as cause:
        raise RuntimeError(
            "a worker process was ended from outside, as a system does that is out of memory: fewer processes"
            " (OMP_NUM_THREADS and dataset.*.num_workers), or smaller images, need less"
        ) from cause


@contextmanager
def in_order(work: Callable[..., Any], state: Any, take: Callable[[Any], None], workers: int) -> Iterator[InOrder]:
    """`work(state, *task)` in `workers` processes for each task that is added; after the block all are done.

    take: called here with each result. The processes end with the block, and with this process, however it ends.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(state,))
    try:
        pool.submit(os.getpid).result()  # starts all that are forked
        together = InOrder(pool, work, take, AHEAD * workers)
        yield together
        together.finish()
    finally:
        pool.shutdown(cancel_futures=True)


_state: Any  # of this worker process


def _start(state: Any) -> None:
    global _state
    interruption.ignore()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state = state


def _end_with_parent() -> None:
    """A parent that was killed tells nobody, and who waits for its tasks would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def _do(work: Callable[..., Any], *task: Any) -> Any:
    return work(_state, *task)
