"""What happened to a job: append-only events, and one record per attempt."""

import time
from dataclasses import dataclass

from mask2former_mcp.jobs.database import Database
from mask2former_mcp.jobs.job import JobState


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. A transition names the state it led to; a deletion names none."""

    id: int
    job_id: str
    attempt: int
    at: float
    from_state: JobState | None
    to_state: JobState | None
    text: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job's command."""

    number: int
    started_at: float
    finished_at: float | None
    state: JobState | None
    exit_code: int | None
    resumed_from: str | None  # the checkpoint's file name; None: from the start
    resume_epoch: int | None
    status_offset: int  # bytes of status.json that earlier attempts wrote


class History:
    def __init__(self, database: Database) -> None:
        self.database = database

    def events(self, job_id: str) -> tuple[Event, ...]:
        with self.database.read() as connection:
            found = connection.execute("SELECT * FROM events WHERE job_id = ? ORDER BY id", (job_id,)).fetchall()
        return tuple(
            Event(
                id=row["id"],
                job_id=row["job_id"],
                attempt=row["attempt"],
                at=row["at"],
                from_state=_state(row["from_state"]),
                to_state=_state(row["to_state"]),
                text=row["text"],
            )
            for row in found
        )

    def begin(
        self, job_id: str, number: int, *, resumed_from: str | None, resume_epoch: int | None, status_offset: int
    ) -> Attempt:
        """Record the start of an attempt. Started again by another supervisor, the first record stands."""
        with self.database.write() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO attempts"
                " (job_id, attempt, started_at, resumed_from, resume_epoch, status_offset) VALUES (?,?,?,?,?,?)",
                (job_id, number, time.time(), resumed_from, resume_epoch, status_offset),
            )
        attempt = self.attempt(job_id, number)
        assert attempt is not None  # written above, in this store
        return attempt

    def end(self, job_id: str, number: int, state: JobState, exit_code: int | None) -> None:
        with self.database.write() as connection:
            connection.execute(
                "UPDATE attempts SET finished_at = ?, state = ?, exit_code = ? WHERE job_id = ? AND attempt = ?",
                (time.time(), state, exit_code, job_id, number),
            )

    def attempt(self, job_id: str, number: int) -> Attempt | None:
        return next((attempt for attempt in self.attempts(job_id) if attempt.number == number), None)

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        with self.database.read() as connection:
            found = connection.execute("SELECT * FROM attempts WHERE job_id = ? ORDER BY attempt", (job_id,)).fetchall()
        return tuple(
            Attempt(
                number=row["attempt"],
                started_at=row["started_at"],
                finished_at=row["finished_at"],
                state=_state(row["state"]),
                exit_code=row["exit_code"],
                resumed_from=row["resumed_from"],
                resume_epoch=row["resume_epoch"],
                status_offset=row["status_offset"],
            )
            for row in found
        )

    def seconds(self, job_id: str) -> float | None:
        """What all attempts took together, the last one so far, without the time between them. None: none began."""
        attempts = self.attempts(job_id)
        if not attempts:
            return None
        *before, last = attempts
        ended = sum(attempt.finished_at - attempt.started_at for attempt in before if attempt.finished_at is not None)
        return ended + (last.finished_at or time.time()) - last.started_at


def _state(value: str | None) -> JobState | None:
    return None if value is None else JobState(value)
