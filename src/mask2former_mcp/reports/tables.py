"""Figures as tables for a terminal."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.box import SIMPLE_HEAD
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


def jobs_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of list_jobs (server/job_facts.py), newest first. Ids and times stay whole in 80 columns."""
    table = Table(title="Jobs", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("job", "created", "status", "metric"):
        table.add_column(column, no_wrap=True)
    table.add_column("says", overflow="fold")
    for job in jobs:
        created = datetime.fromisoformat(job["about"]["created_at"]).astimezone()
        table.add_row(job["job_id"], f"{created:%m-%d %H:%M}", _status(job), _figure(job), _says(job)[:160])
    return table


def jobs_lines(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same for programs: a line a job, fields between tabs, times in UTC."""
    rows = [(job["job_id"], job["about"]["created_at"], _status(job), _figure(job), _says(job)) for job in jobs]
    return ["\t".join(" ".join(str(field).split()) for field in row) for row in rows]


def _status(job: Mapping[str, Any]) -> str:
    return f"running {job['progress']:.0%}" if job["status"] == "running" else str(job["status"])


def _figure(job: Mapping[str, Any]) -> str:
    """The metric that chose the best epoch; a dash where none was measured."""
    name = job["about"].get("metric")
    return f"{name} {job['metrics'][name]:.3f}" if name in job["metrics"] else "-"


def _says(job: Mapping[str, Any]) -> str:
    return str(job["message"] or job["phase"])


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
