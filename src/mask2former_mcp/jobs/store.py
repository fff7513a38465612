"""The store of jobs: rows and compare-and-set transitions.

Nothing here decides; which state may follow which is the table in job.py. Times are seconds since the epoch.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from sqlite3 import Row
from typing import Any

from mask2former_mcp.errors import InvalidRequest, StoreError
from mask2former_mcp.jobs import rows
from mask2former_mcp.jobs.database import Database
from mask2former_mcp.jobs.history import History
from mask2former_mcp.jobs.job import LIVE, TRANSITIONS, Job, JobState
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.series import Series

Told = Callable[[StoreError], object]  # what is said of a row that does not read; its details have the job_id


# What a new attempt starts without.
_FRESH: dict[str, Any] = {
    "phase": "", "progress": 0.0, "eta_s": None, "message": "", "error_code": None, "handle": None, "finished_at": None
}  # fmt: skip

_log = logging.getLogger(__name__)


class JobStore:
    """Jobs in `<home>/jobs.sqlite3`. Safe to share between threads; other processes open their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.database = Database(home / "jobs.sqlite3")
        self.history = History(self.database)
        self.series = Series(self.database)
        self._logged: set[str] = set()

    def close(self) -> None:
        self.database.close()

    def insert(self, job: Job) -> tuple[Job, bool]:
        """Store a new job; with a run name that stands already, answer the job that has it. Returns (job, is new).

        InvalidRequest: the name belongs to another plan, or the results folder to another job.
        """
        with self.database.write() as connection:
            if job.run_name is not None:
                row = connection.execute("SELECT * FROM jobs WHERE run_name = ?", (job.run_name,)).fetchone()
                if row is not None:
                    return _same_plan(rows.read(row), job.plan), False
            row = connection.execute("SELECT id FROM jobs WHERE results_dir = ?", (job.results_dir,)).fetchone()
            if row is not None:
                raise InvalidRequest(
                    f"results_dir {job.results_dir} belongs to job {row['id']}",
                    fix="Name a new folder, or leave results_dir out.",
                )
            rows.insert(connection, job)
            return rows.one(connection, job.id), True

    def named(self, run_name: str, plan: Plan) -> Job | None:
        """The job of this run name, or None; InvalidRequest when it has another plan."""
        with self.database.read() as connection:
            row = connection.execute("SELECT * FROM jobs WHERE run_name = ?", (run_name,)).fetchone()
        return None if row is None else _same_plan(rows.read(row), plan)

    def get(self, job_id: str) -> Job:
        with self.database.read() as connection:
            return rows.one(connection, job_id)

    def state(self, job_id: str) -> tuple[JobState, int] | None:
        """(state, attempt), cheap enough to ask several times a second; None when there is no such job."""
        with self.database.read() as connection:
            row = connection.execute("SELECT state, attempt FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else (JobState(row["state"]), row["attempt"])

    def list(
        self,
        *,
        states: Collection[JobState] | None = None,
        action: str | None = None,
        study_id: str | None = None,
        parent_job_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        unreadable: Told | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """Newest first; the cursor of the next page is None on the last.

        A row that does not read keeps nobody from the others: it is left out, and told to `unreadable` or the log.
        """
        clauses: list[str] = ["1"]
        values: list[Any] = []
        if states is not None:
            clauses.append(f"state IN ({','.join('?' * len(states))})")
            values += states
        for column, value in (("action", action), ("study_id", study_id), ("parent_job_id", parent_job_id)):
            if value is not None:
                clauses.append(f"{column} = ?")
                values.append(value)
        if cursor is not None:
            clauses.append("(created_at, id) < (?, ?)")
            values += _read_cursor(cursor)
        query = f"SELECT * FROM jobs WHERE {' AND '.join(clauses)} ORDER BY created_at DESC, id DESC LIMIT ?"
        with self.database.read() as connection:
            found = connection.execute(query, (*values, limit + 1)).fetchall()
        page = found[:limit]
        jobs = list(_readable(page, unreadable or self._log_once))
        return jobs, f"{page[-1]['created_at']!r}:{page[-1]['id']}" if len(found) > limit else None

    def _log_once(self, error: StoreError) -> None:
        if error.message not in self._logged:
            self._logged.add(error.message)
            _log.warning("%s. %s", error.message, error.fix)

    def transition(
        self,
        job_id: str,
        to: JobState,
        *,
        expect: Collection[JobState],
        text: str,
        attempt: int | None = None,
        **changes: Any,
    ) -> Job | None:
        """Move a job if it still is in one of `expect` (and in this attempt); None when somebody else moved it first.

        Devices are given back when the job ends. ValueError: a pair that the table does not allow.
        """
        for state in expect:
            if to not in TRANSITIONS[state]:
                raise ValueError(f"no transition from {state} to {to}")
        with self.database.write() as connection:
            moved = rows.move(connection, job_id, to, expect=expect, attempt=attempt, text=text, changes=changes)
            return rows.one(connection, job_id) if moved else None

    def retry(
        self, job_id: str, *, attempt: int, restarts: int, reason: str, ended: JobState = JobState.LOST
    ) -> Job | None:
        """End this attempt as lost (or failed) and queue the next one, in one step that nobody sees half done."""
        live = (JobState.PREPARING, JobState.RUNNING)
        with self.database.write() as connection:
            if not rows.move(connection, job_id, ended, expect=live, attempt=attempt, text=reason, changes={}):
                return None
            # It keeps its place in the queue: what was interrupted goes on before what never began.
            self._queue(connection, job_id, ended, attempt, "queued again", {"restarts": restarts})
            return rows.one(connection, job_id)

    def resume(self, job_id: str, *, expect: JobState, attempt: int, changes: dict[str, Any]) -> Job | None:
        """Queue the next attempt of an ended job; None when somebody else moved it first."""
        with self.database.write() as connection:
            fields = {"restarts": 0, "changes": changes, "queued_at": time.time()}
            moved = self._queue(connection, job_id, expect, attempt, "queued again by resume_job", fields)
            return rows.one(connection, job_id) if moved else None

    def _queue(
        self, connection: Any, job_id: str, expect: JobState, attempt: int, text: str, fields: dict[str, Any]
    ) -> bool:
        changes = {**_FRESH, **fields, "attempt": attempt + 1}
        return rows.move(
            connection, job_id, JobState.QUEUED, expect=(expect,), attempt=attempt, text=text, changes=changes
        )

    def update(self, job_id: str, attempt: int, **changes: Any) -> bool:
        """Progress of a live attempt; False when the job ended, or another attempt has begun."""
        with self.database.write() as connection:
            return rows.change(connection, job_id, attempt, LIVE, changes)

    def dependents(self, job_id: str) -> tuple[str, ...]:
        """Jobs that need this one's files (rows.py)."""
        with self.database.read() as connection:
            return rows.dependents(connection, job_id)

    def remove(self, job_id: str) -> bool:
        """Forget an ended job; its events stay. False: it lives, or its study does, or another job depends on it."""
        with self.database.write() as connection:
            job = rows.one(connection, job_id)
            study = rows.state(connection, job.study_id)
            if not job.state.terminal or rows.dependents(connection, job_id) or not (study is None or study.terminal):
                return False
            for table in ("leases", "metrics", "attempts"):
                connection.execute(f"DELETE FROM {table} WHERE job_id = ?", (job_id,))
            connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
            rows.record(connection, job_id, job.attempt, None, None, "deleted")
            return True

    def note_supervisor(self, job_id: str, supervisor: dict[str, Any], *, spawned: bool) -> int:
        """Remember who follows the job; returns how often one was started since the job last moved."""
        with self.database.write() as connection:
            connection.execute(
                "UPDATE jobs SET supervisor = ?, spawns = spawns + ? WHERE id = ?",
                (json.dumps(supervisor), int(spawned), job_id),
            )
            row = connection.execute("SELECT spawns FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return 0 if row is None else int(row["spawns"])


def _readable(page: Iterable[Row], unreadable: Told) -> Iterator[Job]:
    for row in page:
        try:
            yield rows.read(row)
        except StoreError as error:
            unreadable(error)


def _same_plan(job: Job, plan: Plan) -> Job:
    if job.plan.digest == plan.digest:
        return job
    raise InvalidRequest(
        f"run_name {job.run_name!r} belongs to job {job.id}, whose plan differs in"
        f" {', '.join(_differences(job.plan, plan)) or 'its digest'}",
        fix="Choose another run_name, or repeat the arguments of that job exactly.",
        details={"job_id": job.id},
    )


def _differences(one: Plan, other: Plan) -> list[str]:
    """What two Plans do not share, by its name: dotted keys of the spec, and the rest that the digest covers."""
    before, after = one.spec_overrides, other.spec_overrides
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    parts = ("action", "platform", "runtime", "image", "datasets", "checkpoint", "study")
    return [*(part for part in parts if getattr(one, part) != getattr(other, part)), *keys]


def _read_cursor(cursor: str) -> list[Any]:
    when, _, job_id = cursor.partition(":")
    try:
        return [float(when), job_id]
    except ValueError:
        raise InvalidRequest(
            f"cursor {cursor!r} is not one that list_jobs answered", fix="Pass next_cursor unchanged, or leave it out."
        ) from None
