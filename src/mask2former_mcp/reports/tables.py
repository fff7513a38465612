"""Figures as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

HEADLINE_METRICS = ("mIoU", "PQ", "SQ", "RQ", "AP")


def metrics_table(
    rows: Mapping[str, Mapping[str, float]], *, title: str, names: Sequence[str] = HEADLINE_METRICS
) -> Table:
    """One line a row (a model, a split), one column a metric; a dash where it was not measured."""
    table = Table(title=title)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for label, metrics in rows.items():
        table.add_row(label, *(f"{metrics[name]:.3f}" if name in metrics else "-" for name in names))
    return table


def jobs_table(jobs: Sequence[Mapping[str, object]]) -> Table:
    """Job summaries (server/job_facts.py), newest first."""
    table = Table(title="Jobs")
    for column in ("job", "status", "progress", "phase", "mIoU", "message"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        metrics = job["metrics"]
        miou = metrics.get("mIoU") if isinstance(metrics, Mapping) else None
        progress = job["progress"]
        percent = f"{progress:.0%}" if isinstance(progress, int | float) else "-"
        figure = f"{miou:.3f}" if isinstance(miou, float) else "-"
        table.add_row(
            str(job["job_id"]), str(job["status"]), percent, str(job["phase"]), figure, str(job["message"])[:80]
        )
    return table


def leaderboard_table(trials: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """Trials of a search as get_job answers them, best first."""
    table = Table(title=title)
    for column in ("trial", "metric", "epoch", "status", "seconds", "parameters"):
        table.add_column(column, overflow="fold")
    for trial in trials:
        metric, seconds, epoch = trial["metric"], trial["duration_s"], trial["epoch"]
        table.add_row(
            str(trial["trial"]),
            "-" if metric is None else f"{metric:.4f}",
            "-" if epoch is None else str(epoch),
            str(trial["status"]),
            "-" if seconds is None else f"{seconds:.0f}",
            ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in trial["parameters"].items()),
        )
    return table
