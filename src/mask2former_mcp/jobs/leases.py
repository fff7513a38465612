"""Who holds which device. A lease belongs to a job and ends with it; the store gives it back in the same step."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from mask2former_mcp.jobs.database import Database
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.platforms.devices import Inventory


@dataclass(frozen=True, slots=True)
class Grant:
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not yet. `behind`: the jobs that hold the devices, or stand before this one."""

    behind: tuple[str, ...]


class Leases:
    def __init__(self, database: Database) -> None:
        self.database = database

    def acquire(
        self, job_id: str, count: int, inventory: Inventory, *, waits: Callable[[str], bool]
    ) -> Grant | Waiting:
        """Take `count` devices, first come first served. Asking again with a grant answers the same grant.

        `waits` tells whether an earlier queued job still has a supervisor that waits; one without does not block the
        queue. ValueError: more than this machine has.
        """
        if count > len(inventory.names):
            raise ValueError(f"{count} asked, {len(inventory.names)} there")
        with self.database.write() as connection:
            held = {row["device"]: row["job_id"] for row in connection.execute("SELECT device, job_id FROM leases")}
            mine = tuple(device for device, holder in held.items() if holder == job_id)
            if mine:
                return Grant(mine)
            earlier = connection.execute(
                "SELECT id FROM jobs WHERE state = ? AND (queued_at, id) <"
                " (SELECT queued_at, id FROM jobs WHERE id = ?) ORDER BY queued_at, id",
                (JobState.QUEUED, job_id),
            ).fetchall()
            before = tuple(row["id"] for row in earlier if waits(row["id"]))
            free = [device for device in inventory.names if device not in held]
            if before or len(free) < count:
                holders = dict.fromkeys(holder for device, holder in held.items() if device in inventory.names)
                return Waiting(behind=(*holders, *before))
            taken = tuple(free[:count])
            connection.executemany(
                "INSERT INTO leases (device, job_id, acquired_at) VALUES (?, ?, ?)",
                [(device, job_id, time.time()) for device in taken],
            )
            return Grant(taken)

    def held(self, job_id: str) -> tuple[str, ...]:
        with self.database.read() as connection:
            rows = connection.execute("SELECT device FROM leases WHERE job_id = ? ORDER BY rowid", (job_id,)).fetchall()
        return tuple(row["device"] for row in rows)

    def release_orphans(self) -> int:
        """Give back what ended or unknown jobs hold; returns how many devices. Normally none."""
        with self.database.write() as connection:
            terminal = tuple(state for state in JobState if state.terminal)
            marks = ", ".join("?" * len(terminal))
            cursor = connection.execute(
                f"DELETE FROM leases WHERE job_id NOT IN (SELECT id FROM jobs WHERE state NOT IN ({marks}))", terminal
            )
        return cursor.rowcount
