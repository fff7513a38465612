from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.leases import Grant, Leases, Waiting
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.platforms.devices import Inventory

Add = Callable[..., Job]
CPU = Inventory("cpu", ("cpu:0",))
GPUS = Inventory("gpu", ("GPU-a", "GPU-b", "GPU-c"))


def everybody(_job_id: str) -> bool:
    return True


def test_the_second_job_waits_behind_the_first_and_gets_the_slot_when_it_ends(store: JobStore, add: Add) -> None:
    leases = Leases(store.database)
    add("train-1")
    add("train-2", created_at=2.0)
    assert leases.acquire("train-1", 1, CPU, waits=everybody) == Grant(("cpu:0",))
    store.transition("train-1", JobState.RUNNING, expect=(JobState.QUEUED,), text="go")
    assert leases.acquire("train-2", 1, CPU, waits=everybody) == Waiting(("train-1",))
    assert leases.acquire("train-1", 1, CPU, waits=everybody) == Grant(("cpu:0",))
    store.transition("train-1", JobState.FAILED, expect=(JobState.RUNNING,), text="end")
    assert leases.acquire("train-2", 1, CPU, waits=everybody) == Grant(("cpu:0",))


def test_nobody_overtakes_a_job_that_waits_for_more_but_a_deserted_one_blocks_nobody(store: JobStore, add: Add) -> None:
    leases = Leases(store.database)
    for number in (1, 2, 3):
        add(f"train-{number}", created_at=float(number))
    leases.acquire("train-1", 2, GPUS, waits=everybody)
    store.transition("train-1", JobState.RUNNING, expect=(JobState.QUEUED,), text="go")
    assert leases.acquire("train-2", 2, GPUS, waits=everybody) == Waiting(("train-1",))
    assert leases.acquire("train-3", 1, GPUS, waits=everybody) == Waiting(("train-1", "train-2"))
    assert leases.acquire("train-3", 1, GPUS, waits=lambda _: False) == Grant(("GPU-c",))


def test_more_than_there_is_cannot_be_asked(store: JobStore, add: Add) -> None:
    add("train-1")
    with pytest.raises(ValueError, match="4 asked, 3 there"):
        Leases(store.database).acquire("train-1", 4, GPUS, waits=everybody)


def test_leases_of_unknown_jobs_are_given_back(store: JobStore, add: Add) -> None:
    leases = Leases(store.database)
    add("train-1")
    leases.acquire("train-1", 1, GPUS, waits=everybody)
    with store.database.write() as connection:
        connection.execute("INSERT INTO leases (device, job_id, acquired_at) VALUES ('GPU-b', 'train-0', 1)")
    assert leases.release_orphans() == 1
    assert leases.held("train-1") == ("GPU-a",)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.booleans()), max_size=20))
def test_no_device_is_ever_held_twice(store: JobStore, add: Add, moves: list[tuple[int, int, bool]]) -> None:
    leases = Leases(store.database)
    base = len(store.list(limit=1000)[0])
    ids = [f"train-{base + number}" for number in range(4)]
    for job_id in ids:
        add(job_id)
    for which, count, ends in moves:
        job = store.get(ids[which])
        if job.state.terminal:
            continue
        if ends:
            store.transition(job.id, JobState.CANCELLED, expect=(job.state,), text="end")
        else:
            leases.acquire(job.id, count, GPUS, waits=lambda _: False)
        held = [device for job_id in ids for device in leases.held(job_id)]
        assert len(held) == len(set(held))
        assert not any(leases.held(job_id) for job_id in ids if store.get(job_id).state.terminal)
    for job_id in ids:
        if not store.get(job_id).state.terminal:
            store.transition(job_id, JobState.CANCELLED, expect=(JobState.QUEUED,), text="end")
