import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mask2former_mcp.errors import InvalidRequest, NotFound, StoreError
from mask2former_mcp.jobs.cached import cache_bound
from mask2former_mcp.jobs.database import SCHEMA_VERSION, Database
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.settings import Settings

Add = Callable[..., Job]


def test_a_stored_job_is_read_back_equal_by_another_process_of_the_same_home(store: JobStore, add: Add) -> None:
    job = add("train-1", run_name="belt", parent_job_id="train-0", study_id="train-1", trial=0, message="hello")
    other = JobStore(store.home)
    try:
        assert other.get("train-1") == job
    finally:
        other.close()


def test_a_second_store_of_one_process_does_not_cost_the_first_one_its_lock(store: JobStore, add: Add) -> None:
    """Of POSIX locks: whoever closes a file loses all that its process holds on it."""
    second = JobStore(store.home)
    add("train-1")
    code = (
        "import sys, pathlib; from mask2former_mcp.jobs import store; store.JobStore(pathlib.Path(sys.argv[1])).close()"
    )
    subprocess.run([sys.executable, "-c", code, str(store.home)], check=True, timeout=30)
    assert (store.home / "jobs.sqlite3-wal").exists()  # else that process took itself for the last one, and cleared up
    assert store.get("train-1") == second.get("train-1")
    second.close()


def test_the_store_and_its_folder_are_private(store: JobStore) -> None:
    assert stat.S_IMODE((store.home / "jobs.sqlite3").stat().st_mode) == 0o600
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o700


def test_a_transition_happens_once_however_many_try(store: JobStore, add: Add) -> None:
    add("train-1")
    others = [JobStore(store.home) for _ in range(4)]
    won: list[Job] = []
    start = threading.Barrier(len(others))

    def attempt(mine: JobStore) -> None:
        start.wait()
        moved = mine.transition("train-1", JobState.PREPARING, expect=(JobState.QUEUED,), text="mine")
        if moved is not None:
            won.append(moved)

    threads = [threading.Thread(target=attempt, args=(mine,)) for mine in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in others:
        mine.close()
    assert len(won) == 1
    assert [event.to_state for event in store.history.events("train-1")] == [JobState.QUEUED, JobState.PREPARING]


def test_a_transition_outside_the_table_is_a_mistake_of_the_program(store: JobStore, add: Add) -> None:
    add("train-1")
    for state in JobState:  # queued again is another attempt: retry, resume
        with pytest.raises(ValueError, match=f"no transition from {state} to queued"):
            store.transition("train-1", JobState.QUEUED, expect=(state,), text="no")


def test_a_retry_is_lost_then_queued_and_keeps_its_place_in_the_queue(store: JobStore, add: Add) -> None:
    add("train-1")
    store.transition("train-1", JobState.RUNNING, expect=(JobState.QUEUED,), text="go", handle={"run": "x"})
    again = store.retry("train-1", attempt=1, restarts=1, reason="gone")
    assert again is not None
    assert (again.state, again.attempt, again.restarts, again.handle) == (JobState.QUEUED, 2, 1, None)
    assert again.queued_at == again.created_at
    assert [e.to_state for e in store.history.events("train-1")][-2:] == [JobState.LOST, JobState.QUEUED]
    assert store.retry("train-1", attempt=1, restarts=2, reason="late") is None
    assert not store.update("train-1", 1, phase="an overtaken supervisor writes nothing")


@pytest.mark.parametrize("ended", [state for state in JobState if state.terminal])
def test_every_ended_job_can_be_resumed_as_the_next_attempt(store: JobStore, add: Add, ended: JobState) -> None:
    add("train-1")
    store.transition("train-1", ended, expect=(JobState.QUEUED,), text="end", message="over", error_code="x")
    job = store.resume("train-1", expect=ended, attempt=1, changes={"train.num_epochs": 9})
    assert job is not None
    assert (job.state, job.attempt, job.message, job.error_code, job.finished_at) == (
        JobState.QUEUED,
        2,
        "",
        None,
        None,
    )
    assert job.changes == {"train.num_epochs": 9}


def test_events_can_neither_be_changed_nor_removed(store: JobStore, add: Add) -> None:
    add("train-1")
    for statement in ("UPDATE events SET text = ''", "DELETE FROM events"):
        with pytest.raises(StoreError, match="append-only"), store.database.write() as connection:
            connection.execute(statement)
    store.transition("train-1", JobState.CANCELLED, expect=(JobState.QUEUED,), text="end")
    assert store.remove("train-1")
    assert [event.text for event in store.history.events("train-1")] == ["submitted", "end", "deleted"]


def test_a_results_folder_belongs_to_one_job(store: JobStore, add: Add) -> None:
    add("train-1", results_dir="/data/run")
    with pytest.raises(InvalidRequest, match="train-1"):
        add("train-2", results_dir="/data/run")


def test_an_unknown_job_names_the_nearest_ids(store: JobStore, add: Add) -> None:
    with pytest.raises(NotFound, match="no job") as nothing:
        store.get("train-x")
    assert "train" in nothing.value.fix
    add("train-7f3k9q2d")
    with pytest.raises(NotFound) as near:
        store.get("train-7f3k9q2x")
    assert "train-7f3k9q2d" in near.value.fix


def test_listing_pages_through_all_jobs_newest_first(store: JobStore, add: Add) -> None:
    for number in range(7):
        add(f"train-{number}", created_at=float(number // 2))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = store.list(limit=3, cursor=cursor)
        seen += [job.id for job in page]
        if cursor is None:
            break
    assert seen == [f"train-{number}" for number in (6, 5, 4, 3, 2, 1, 0)]
    with pytest.raises(InvalidRequest, match="cursor"):
        store.list(cursor="nonsense")
    assert store.list(states=(JobState.RUNNING,)) == ([], None)


def test_a_store_of_a_newer_version_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match=f"version {SCHEMA_VERSION + 1}") as refused:
        Database(path)
    assert "Upgrade" in refused.value.fix


def test_an_older_store_is_migrated_forward_and_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jobs.sqlite3"
    first = Database(path)
    with first.write() as connection:
        connection.execute("INSERT INTO leases (device, job_id, acquired_at) VALUES ('cpu:0', 'train-1', 1)")
    first.close()
    from mask2former_mcp.jobs import database

    added = ("ALTER TABLE leases ADD COLUMN note TEXT NOT NULL DEFAULT 'none'",)
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, added))
    monkeypatch.setattr(database, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    second = Database(path)
    with second.read() as connection:
        assert tuple(connection.execute("SELECT device, note FROM leases").fetchone()) == ("cpu:0", "none")
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION + 1
    second.close()


def test_a_file_that_is_no_database_and_an_unwritable_home_are_store_errors(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_text("this is not a database, whatever its name says" * 50)
    with pytest.raises(StoreError, match="cannot be used") as damaged:
        JobStore(tmp_path)
    assert "Move jobs.sqlite3 away" in damaged.value.fix
    with pytest.raises(StoreError) as refused:
        JobStore(tmp_path / "jobs.sqlite3" / "below-a-file")
    assert "M2F_HOME" in refused.value.fix


def test_a_row_that_does_not_read_names_its_job_and_how_to_be_rid_of_it(store: JobStore, add: Add) -> None:
    add("train-1")
    with store.database.write() as connection:
        connection.execute('UPDATE jobs SET plan = \'{"action": "fly"}\'')
    with pytest.raises(StoreError, match="train-1") as refused:
        store.get("train-1")
    assert "DELETE FROM jobs WHERE id = 'train-1'" in refused.value.fix


def test_a_list_leaves_out_what_does_not_read_and_tells_which(
    store: JobStore, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        add(f"train-{number}", created_at=float(number))
    with store.database.write() as connection:
        connection.execute("UPDATE jobs SET plan = '{}' WHERE id IN ('train-3', 'train-1')")
    seen: list[str] = []
    told: list[StoreError] = []
    cursor: str | None = None
    while True:
        page, cursor = store.list(limit=1, cursor=cursor, unreadable=told.append)
        seen += [job.id for job in page]
        if cursor is None:
            break
    assert seen == ["train-2", "train-0"]
    assert [error.details["job_id"] for error in told] == ["train-3", "train-1"]
    assert "DELETE FROM jobs WHERE id = 'train-3'" in told[0].fix
    store.list()
    store.list()
    assert [line.split(" cannot")[0] for line in caplog.messages] == [
        "the stored job train-3",
        "the stored job train-1",
    ]


def test_what_a_live_job_that_does_not_read_may_use_stays_in_the_cache(store: JobStore, add: Add) -> None:
    add("train-1")
    bound = cache_bound(Settings(home=store.home), store)
    assert bound.in_use() == set()
    with store.database.write() as connection:
        connection.execute("UPDATE jobs SET plan = '{}'")
    assert bound.in_use() is None
