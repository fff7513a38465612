"""Work done in processes beside the network, their results taken in the order of the tasks.

Only so many tasks are under way at once that memory stays bounded: whoever adds one more waits for the oldest. On
Linux the processes are forked, which costs no start and shares what the tasks need; they must touch neither CUDA nor
threads that were there before. Arrays of a task are handed over in memory that both sides see (shared_slots.py): a
copy, where a pipe takes many small ones. Those that do not fit there, and all where nothing is forked, go through the
pipe.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import numpy as np

from mask2former_mcp.engine import interruption, shared_slots

AHEAD = 3  # tasks under way for each process
SLOT = 16 << 20  # bytes of one task's arrays in shared memory
PIPED = 1 << 30  # bytes of tasks under way that go through the pipe, unless one alone has more
LATER = 10  # niceness: who feeds a GPU, and who reads for it, comes first
KEPT = 31 << 20  # bytes; see `_keep_memory`


class InOrder:
    """Takes tasks, so many under way at most. Made by `in_order`. slots: for the arrays of each of them, if any."""

    def __init__(
        self,
        pool: ProcessPoolExecutor,
        work: Callable[..., Any],
        take: Callable[[Any], None],
        most: int,
        slots: list[memoryview],
    ):
        self._pool, self._work, self._receive, self._most, self._slots = pool, work, take, most, slots
        self._pending: deque[tuple[Future[Any], int]] = deque()  # with the bytes that go through the pipe
        self._added, self._piped = 0, 0

    def add(self, *task: Any) -> None:
        """Raises what an earlier task raised."""
        while len(self._pending) >= self._most:
            self._take()
        slot = self._added % self._most  # the oldest task's, which has been taken
        content, places = _packed(task, self._slots[slot] if self._slots else memoryview(b""))
        while self._pending and self._piped + len(content) > PIPED:
            self._take()
        with _explained():
            self._pending.append((self._pool.submit(_do, self._work, slot, content, places), len(content)))
        self._added += 1
        self._piped += len(content)

    def finish(self) -> None:
        """Returns when all results have been taken."""
        while self._pending:
            self._take()

    def _take(self) -> None:
        future, piped = self._pending.popleft()
        with _explained():
            done = future.result()
        self._piped -= piped
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

    take: called with each result, in the thread that adds or finishes. The processes end with the block, and with this
    process, however it ends.
    """
    _keep_memory()
    most = AHEAD * workers
    slots = shared_slots.make(most, SLOT)
    context = multiprocessing.get_context("fork" if shared_slots.forks() else None)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(state, slots))
    try:
        pool.submit(os.getpid).result()  # starts all that are forked
        together = InOrder(pool, work, take, most, slots)
        yield together
        together.finish()
    finally:
        pool.shutdown(cancel_futures=True)


def _packed(task: tuple[Any, ...], slot: memoryview) -> tuple[bytes, list[slice]]:
    """The task without its arrays, and where in the slot they are. Those that find no room there stay in the task."""
    places: list[slice] = []

    def stays(array: pickle.PickleBuffer) -> bool:
        content = array.raw()
        start = -(-places[-1].stop // 64) * 64 if places else 0  # aligned, as numpy has them
        if not 0 < content.nbytes <= len(slot) - start:
            return True
        places.append(slice(start, start + content.nbytes))
        np.copyto(np.frombuffer(slot[places[-1]], np.uint8), np.frombuffer(content, np.uint8))  # other threads go on
        return False

    return pickle.dumps(task, protocol=5, buffer_callback=stays), places


_state: Any  # of this worker process
_slots: list[memoryview]


def _start(state: Any, slots: list[memoryview]) -> None:
    global _state, _slots
    interruption.ignore()
    if hasattr(os, "nice"):
        os.nice(LATER)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state, _slots = state, slots


def _keep_memory() -> None:
    """Has glibc keep what is freed here and in what is forked, up to twice this, for what is allocated next.

    Images make large arrays and drop them, and each page that went back to the system comes again as a fault and
    cleared: 2000 of them an image that is written. glibc learns from the largest piece that was freed, up to 32 MiB,
    which sizes to keep (M_MMAP_THRESHOLD in mallopt(3)). Elsewhere this does nothing.
    """
    bytes(KEPT)


def _end_with_parent() -> None:
    """A parent that was killed tells nobody, and who waits for its tasks would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def _do(work: Callable[..., Any], slot: int, task: bytes, places: list[slice]) -> Any:
    shared = [_slots[slot][place] for place in places]
    return work(_state, *pickle.loads(task, buffers=shared))
