"""Work in processes beside this one: what tasks hold arrives whole, in order, however large, and ends are told."""

import errno
import os
import signal
from typing import Any

import numpy as np
import pytest

from mask2former_mcp.engine import shared_slots, worker_pool
from mask2former_mcp.engine.worker_pool import AHEAD, SLOT


def echo(state: str, *task: Any) -> Any:
    return state, *task


def end(_state: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def through(tasks: list[tuple[Any, ...]], workers: int = 2) -> list[Any]:
    found: list[Any] = []
    with worker_pool.in_order(echo, "state", found.append, workers) as pool:
        for task in tasks:
            pool.add(*task)
    return found


def arrays(number: int) -> tuple[Any, ...]:
    """Of several kinds, with this number in each that has room for one."""
    rows, columns = np.indices((300, 200), dtype=np.uint8)
    turned = np.full((70, 50), number, dtype=np.float64).T
    return (
        {"number": number, "maps": [(rows + number) % 7, (columns * number % 5).astype(np.int16)]},
        turned,
        (rows + number)[::3, ::2],
        rows > number,
        np.zeros((0, 4), dtype=np.int32),
        np.array([number]),
    )


def assert_same(found: Any, wanted: Any) -> None:
    np.testing.assert_equal(found, wanted)
    assert [part.dtype for part in found[2:]] == [part.dtype for part in wanted[2:]]


def test_many_more_tasks_than_are_under_way_at_once_come_back_whole_and_in_order() -> None:
    tasks = [arrays(number) for number in range(4 * AHEAD)]
    for found, task in zip(through(tasks), tasks, strict=True):
        assert_same(found, ("state", *task))


def test_a_task_larger_than_its_shared_memory_comes_back_whole() -> None:
    large = np.random.default_rng(0).integers(0, 256, SLOT + 1, dtype=np.uint8)
    half = large[: SLOT // 2 + 1]
    for task in ((large,), (half, half + 1, half[:9]), (large[:SLOT], large[:1])):
        (found,) = through([task])
        assert_same(found, ("state", *task))


def test_large_tasks_wait_for_each_other_so_that_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "PIPED", 3 * SLOT)
    found: list[Any] = []
    with worker_pool.in_order(echo, "state", found.append, 2) as pool:
        for number in range(6):
            pool.add(np.full(SLOT + 1, number, dtype=np.uint8))
            assert len(pool._pending) <= 2
        pool.add(np.zeros(4 * SLOT, dtype=np.uint8))  # larger than what is allowed: alone
        assert len(pool._pending) == 1
    assert [int(task[1][0]) for task in found] == [0, 1, 2, 3, 4, 5, 0]


def test_where_memory_cannot_be_shared_tasks_go_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_slots, "forks", lambda: False)
    (found,) = through([arrays(3)])
    assert_same(found, ("state", *arrays(3)))


def no_memory(*_: Any) -> Any:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_where_no_memory_can_be_had_tasks_go_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_slots.mmap, "mmap", no_memory)
    (found,) = through([arrays(3)])
    assert_same(found, ("state", *arrays(3)))


def is_shared(_state: str, array: Any) -> bool:
    return any(np.shares_memory(np.frombuffer(slot, np.uint8), array) for slot in worker_pool._slots)


@pytest.mark.skipif(not shared_slots.forks(), reason="nothing is forked here")
def test_arrays_lie_in_memory_that_both_processes_see() -> None:
    found: list[bool] = []
    with worker_pool.in_order(is_shared, "state", found.append, 1) as pool:
        pool.add(np.zeros(1 << 16))
        pool.add(np.zeros(SLOT + 1, dtype=np.uint8))  # has no room there
    assert found == [True, False]


def test_what_a_task_held_can_be_changed_when_it_has_been_added() -> None:
    same, found = np.zeros(1 << 16, dtype=np.int32), []
    with worker_pool.in_order(echo, "state", found.append, 1) as pool:
        for number in range(3 * AHEAD):
            same[:] = number
            pool.add(same)
    assert [(part.min(), part.max()) for _, part in found] == [(number, number) for number in range(3 * AHEAD)]


def test_a_worker_that_was_killed_is_told_with_what_to_do() -> None:
    with (
        pytest.raises(RuntimeError, match=r"ended from outside.*fewer processes"),
        worker_pool.in_order(end, "state", [].append, 1) as pool,
    ):
        pool.add()
