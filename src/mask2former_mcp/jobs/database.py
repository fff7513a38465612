"""The SQLite file under the store: opening, schema version, forward migrations, transactions."""

import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from mask2former_mcp.errors import StoreError

BUSY_TIMEOUT_MS = 20_000
_DAMAGED = re.compile("not a database|malformed|already exists|no such (table|column)")

# One entry per schema version; an entry is never edited after a release, only followed by another.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE jobs (
            id TEXT PRIMARY KEY, action TEXT NOT NULL, state TEXT NOT NULL, platform TEXT NOT NULL,
            digest TEXT NOT NULL, plan TEXT NOT NULL, results_dir TEXT NOT NULL,
            created_at REAL NOT NULL, queued_at REAL NOT NULL,
            attempt INTEGER NOT NULL DEFAULT 1, restarts INTEGER NOT NULL DEFAULT 0, run_name TEXT UNIQUE,
            parent_job_id TEXT, study_id TEXT, trial INTEGER,
            phase TEXT NOT NULL DEFAULT '', progress REAL NOT NULL DEFAULT 0, eta_s REAL,
            metrics TEXT NOT NULL DEFAULT '{}', message TEXT NOT NULL DEFAULT '', error_code TEXT,
            started_at REAL, finished_at REAL, handle TEXT, changes TEXT NOT NULL DEFAULT '{}',
            supervisor TEXT, spawns INTEGER NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX jobs_by_time ON jobs (created_at, id)",
        "CREATE INDEX jobs_by_state ON jobs (state)",
        "CREATE INDEX jobs_by_parent ON jobs (parent_job_id)",
        "CREATE INDEX jobs_by_study ON jobs (study_id)",
        # One row per time the job's command ran. `resume_epoch` is the epoch of the checkpoint it went on from.
        """CREATE TABLE attempts (
            job_id TEXT NOT NULL, attempt INTEGER NOT NULL, started_at REAL NOT NULL, finished_at REAL, state TEXT,
            exit_code INTEGER, resumed_from TEXT, resume_epoch INTEGER, status_offset INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (job_id, attempt)
        )""",
        # A NULL value is a measurement that was not a number.
        """CREATE TABLE metrics (
            job_id TEXT NOT NULL, attempt INTEGER NOT NULL, epoch INTEGER NOT NULL, name TEXT NOT NULL, value REAL,
            PRIMARY KEY (job_id, attempt, epoch, name)
        )""",
        """CREATE TABLE events (
            id INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT NOT NULL, attempt INTEGER NOT NULL, at REAL NOT NULL,
            from_state TEXT, to_state TEXT, text TEXT NOT NULL
        )""",
        "CREATE INDEX events_by_job ON events (job_id, id)",
        "CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
        "CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
        "CREATE TABLE leases (device TEXT PRIMARY KEY, job_id TEXT NOT NULL, acquired_at REAL NOT NULL)",
        "CREATE INDEX leases_by_job ON leases (job_id)",
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)


class Database:
    """One connection, shared by this process's threads under a lock; other processes have their own.

    Every sqlite3 error leaves as StoreError with the file's name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _made_private(path)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            self._connection.row_factory = sqlite3.Row
            self._connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
            self._connection.execute("PRAGMA journal_mode=WAL")
            # A job id that was answered must survive a power cut: FULL syncs the WAL at each commit.
            self._connection.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except sqlite3.Error as error:
            self._connection.close()
            raise self._unusable(error) from error
        except StoreError:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view for several SELECTs; inside a `write` of the same thread, a part of it."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            with self._transaction("BEGIN") as connection:
                yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its start, so what it read is still true when it writes."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute(begin)
                try:
                    yield self._connection
                except BaseException:
                    if self._connection.in_transaction:  # SQLite has ended it already where the disk fails
                        self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise self._unusable(error) from error

    def _migrate(self) -> None:
        if self._version() == SCHEMA_VERSION:
            return
        with self.write() as connection:  # asked again under the lock: another process may have migrated meanwhile
            version = self._version()
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} has schema version {version}; this version of mask2former-mcp knows {SCHEMA_VERSION}",
                    fix="Upgrade mask2former-mcp, or set M2F_HOME to another folder.",
                )
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _unusable(self, error: Exception) -> StoreError:
        fix = "Check that the folder is writable and has free space, or set M2F_HOME to another folder."
        if _DAMAGED.search(str(error)):
            fix = (
                f"The file is damaged, or not ours. Move {self.path.name} away, with its -wal and -shm files: a new"
                f" store is made. Checkpoints stay below {self.path.parent / 'jobs'}; train takes one as `checkpoint`."
            )
        return StoreError(f"the job store {self.path} cannot be used: {error}", fix=fix)


def _made_private(path: Path) -> None:
    """Create the file; SQLite gives its -wal and -shm files the same mode. One that exists is not opened: closing it
    would drop the locks that another connection of this process holds, and the file is then cleared up under it."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
