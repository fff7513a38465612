"""Metrics per epoch in the store, and what to show of them.

Several attempts of one job write beside each other. What counts is the history of the weights: an attempt that went on
from the checkpoint of epoch e keeps the earlier attempts' values up to e and replaces what followed; one that started
afresh replaces everything.
"""

import math
from collections.abc import Mapping
from typing import Any

from mask2former_mcp.jobs.database import Database

LOWER_IS_BETTER = frozenset({"val_loss", "train_loss"})
Epochs = dict[int, dict[str, float]]


class Series:
    def __init__(self, database: Database) -> None:
        self.database = database

    def write(self, job_id: str, attempt: int, epoch: int, values: Mapping[str, float]) -> None:
        """Store one epoch's values; a value that is not finite is kept as NULL. Writing twice changes nothing."""
        with self.database.write() as connection:
            connection.executemany(
                "INSERT INTO metrics (job_id, attempt, epoch, name, value) VALUES (?,?,?,?,?)"
                " ON CONFLICT (job_id, attempt, epoch, name) DO UPDATE SET value = excluded.value",
                [(job_id, attempt, epoch, name, _finite(value)) for name, value in values.items()],
            )

    def epochs(self, job_id: str) -> Epochs:
        """Epoch -> name -> finite value, as the present weights came to be."""
        with self.database.read() as connection:
            attempts = connection.execute(
                "SELECT attempt, resume_epoch FROM attempts WHERE job_id = ? ORDER BY attempt", (job_id,)
            ).fetchall()
            values = connection.execute("SELECT * FROM metrics WHERE job_id = ?", (job_id,)).fetchall()
        merged: Epochs = {}
        for row in attempts:
            kept = -1 if row["resume_epoch"] is None else row["resume_epoch"]
            merged = {epoch: measured for epoch, measured in merged.items() if epoch <= kept}
            for value in values:
                if value["attempt"] == row["attempt"] and value["value"] is not None:
                    merged.setdefault(value["epoch"], {})[value["name"]] = value["value"]
        return dict(sorted(merged.items()))


def best_epoch(epochs: Mapping[int, Mapping[str, float]], metric: str) -> int | None:
    """The epoch where `metric` is best (the later of two equals, as lineage has it); None: never measured."""
    measured = [epoch for epoch in sorted(epochs) if metric in epochs[epoch]]
    if not measured:
        return None
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    return max(measured, key=lambda epoch: (sign * epochs[epoch][metric], epoch))


def headline(epochs: Mapping[int, Mapping[str, float]], metric: str) -> dict[str, float]:
    """The flat metrics of a job: its best epoch's, or the last epoch's before `metric` was measured."""
    epoch = best_epoch(epochs, metric)
    if epoch is None:
        epoch = max(epochs, default=None)
    return {} if epoch is None else dict(epochs[epoch])


def thin(epochs: Epochs, max_points: int, keep: int | None) -> list[dict[str, Any]]:
    """At most `max_points` epochs in order, evenly spaced, with the first, the last and `keep` among them."""
    numbers = list(epochs)
    if len(numbers) > max_points:
        wanted = {numbers[0], numbers[-1]} | ({keep} if keep in epochs else set())
        room = max(max_points - len(wanted), 0)
        step = len(numbers) / (room + 1)
        wanted |= {numbers[min(int((index + 1) * step), len(numbers) - 1)] for index in range(room)}
        numbers = sorted(number for number in wanted if number is not None)[-max(max_points, 1) :]
    return [{"epoch": number, **epochs[number]} for number in numbers]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
