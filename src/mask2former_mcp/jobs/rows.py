"""Rows of the jobs table: reading one as a Job, and the statements that change one inside a transaction."""

import json
import sqlite3
import time
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from mask2former_mcp.errors import NotFound, StoreError
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import Plan

_JSON = frozenset({"metrics", "handle", "changes"})
_CHANGEABLE = _JSON | {
    "phase",
    "progress",
    "eta_s",
    "message",
    "error_code",
    "started_at",
    "finished_at",
    "attempt",
    "restarts",
    "queued_at",
    "spawns",
}


def read(row: sqlite3.Row) -> Job:
    """StoreError names the job whose row does not read, so that one bad row can be removed."""
    try:
        return _read(row)
    except ValueError as error:  # also JSON's and pydantic's
        raise StoreError(
            f"the stored job {row['id']} cannot be read: {str(error).splitlines()[0]}",
            fix="It was damaged, or written by another version. Upgrade mask2former-mcp; or, in the home, remove it:"
            f""" sqlite3 jobs.sqlite3 "DELETE FROM jobs WHERE id = '{row["id"]}'".""",
            details={"job_id": row["id"]},
        ) from error


def _read(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        action=row["action"],
        state=JobState(row["state"]),
        plan=Plan.model_validate_json(row["plan"]),
        created_at=row["created_at"],
        results_dir=row["results_dir"],
        attempt=row["attempt"],
        run_name=row["run_name"],
        parent_job_id=row["parent_job_id"],
        study_id=row["study_id"],
        trial=row["trial"],
        phase=row["phase"],
        progress=row["progress"],
        eta_s=row["eta_s"],
        metrics=json.loads(row["metrics"]),
        message=row["message"],
        error_code=row["error_code"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        handle=json.loads(row["handle"]) if row["handle"] else None,
        changes=json.loads(row["changes"]),
        restarts=row["restarts"],
        queued_at=row["queued_at"],
        supervisor=json.loads(row["supervisor"]) if row["supervisor"] else None,
        spawns=row["spawns"],
    )


def one(connection: sqlite3.Connection, job_id: str) -> Job:
    """The job with this id; NotFound names the nearest ids."""
    row = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is not None:
        return read(row)
    gone = connection.execute("SELECT 1 FROM events WHERE job_id = ? AND text = 'deleted'", (job_id,)).fetchone()
    recent = [r["id"] for r in connection.execute("SELECT id FROM jobs ORDER BY created_at DESC LIMIT 200")]
    near = get_close_matches(job_id, recent, n=3) or recent[:3]
    raise NotFound(
        f"job {job_id!r} was deleted" if gone else f"there is no job {job_id!r}",
        fix=f"Existing jobs: {', '.join(near)}; list_jobs has all."
        if near
        else "There are no jobs yet: start one with train.",
        details={"job_ids": near},
    )


def state(connection: sqlite3.Connection, job_id: str | None) -> JobState | None:
    """None when there is no such job."""
    row = connection.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return None if row is None else JobState(row["state"])


def insert(connection: sqlite3.Connection, job: Job) -> None:
    values = {
        "id": job.id,
        "action": job.action,
        "state": job.state,
        "platform": job.plan.platform,
        "digest": job.plan.digest,
        "plan": job.plan.model_dump_json(),
        "results_dir": job.results_dir,
        "created_at": job.created_at,
        "queued_at": job.created_at,
        "run_name": job.run_name,
        "parent_job_id": job.parent_job_id,
        "study_id": job.study_id,
        "trial": job.trial,
        "phase": job.phase,
        "message": job.message,
    }
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
    record(connection, job.id, 1, None, job.state, "submitted")


def dependents(connection: sqlite3.Connection, job_id: str) -> tuple[str, ...]:
    """Jobs that need the files of this one: members of its study, and of its children those that a study keeps (the
    evaluations of its trials), those that go on, and those that were interrupted and may be resumed."""
    query = "SELECT * FROM jobs WHERE (parent_job_id = ?1 OR study_id = ?1) AND id != ?1 ORDER BY created_at"
    found = connection.execute(query, (job_id,)).fetchall()
    return tuple(row["id"] for row in found if row["study_id"] not in (None, row["id"]) or _goes_on(row))


def _goes_on(row: sqlite3.Row) -> bool:
    state = JobState(row["state"])
    return not state.terminal or (state is not JobState.SUCCEEDED and row["started_at"] is not None)


def move(
    connection: sqlite3.Connection,
    job_id: str,
    to: JobState,
    *,
    expect: Collection[JobState],
    attempt: int | None,
    text: str,
    changes: Mapping[str, Any],
) -> bool:
    """Compare-and-set of the state. Devices are given back when the job ends or queues again."""
    row = connection.execute("SELECT state, attempt FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None or row["state"] not in expect or (attempt is not None and row["attempt"] != attempt):
        return False
    if to.terminal:
        changes = {"eta_s": None, "finished_at": time.time(), **changes}
    change(connection, job_id, row["attempt"], expect, {"spawns": 0, **changes})
    connection.execute("UPDATE jobs SET state = ? WHERE id = ?", (to, job_id))
    if to.terminal or to is JobState.QUEUED:
        connection.execute("DELETE FROM leases WHERE job_id = ?", (job_id,))
    record(connection, job_id, row["attempt"], JobState(row["state"]), to, text)
    return True


def change(
    connection: sqlite3.Connection, job_id: str, attempt: int, expect: Collection[JobState], changes: Mapping[str, Any]
) -> bool:
    """Set columns if the job still is in this attempt and in one of `expect`."""
    if unknown := set(changes) - _CHANGEABLE:
        raise ValueError(f"not changeable: {', '.join(sorted(unknown))}")
    values = [json.dumps(value) if name in _JSON and value is not None else value for name, value in changes.items()]
    names = ", ".join(f"{name} = ?" for name in changes)
    marks = ", ".join("?" * len(expect))
    cursor = connection.execute(
        f"UPDATE jobs SET {names} WHERE id = ? AND attempt = ? AND state IN ({marks})",
        (*values, job_id, attempt, *expect),
    )
    return cursor.rowcount == 1


def record(
    connection: sqlite3.Connection, job_id: str, attempt: int, old: JobState | None, new: JobState | None, text: str
) -> None:
    """Append one event."""
    connection.execute(
        "INSERT INTO events (job_id, attempt, at, from_state, to_state, text) VALUES (?,?,?,?,?,?)",
        (job_id, attempt, time.time(), old, new, text),
    )
