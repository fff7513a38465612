"""`study.json` in the study's results folder: written while the study runs, final when it has ended.

It is what get_job shows of a study and what later actions read the winner from. Paths in it are relative to the home.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.members import STUDY_FILE as FILE

# What get_job answers; the file has more (full specs, all trials, failures).
_SHOWN = ("leaderboard", "winner", "baseline", "final", "budget", "eta_s", "duration_s", "pictures")
_WINNER = ("trial", "job_id", "metric", "epoch", "checkpoint", "sha256", "parameters", "reason")


def write(results: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    results.mkdir(parents=True, exist_ok=True)
    temporary = results / f".{FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(results / FILE)


def read(results: Path) -> dict[str, Any] | None:
    """The study as it stands; None before its first trial."""
    try:
        found = json.loads((results / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def shown(content: Mapping[str, Any]) -> dict[str, Any]:
    """The compact form: the winner without its spec."""
    facts = {name: content.get(name) for name in _SHOWN}
    if winner := content.get("winner"):
        facts["winner"] = {name: winner[name] for name in _WINNER if name in winner}
    return facts


def shown_of(job: Job, results: Path) -> dict[str, Any]:
    """What get_job shows of a training on the AutoML route; a plain run is a study of one trial, the job itself."""
    if job.plan.study is None:
        return _single(job)
    content = read(results) or {"leaderboard": [], "budget": {"max_trials": job.plan.study["max_trials"]}}
    return {**shown(content), "eta_s": job.eta_s}


def _single(job: Job) -> dict[str, Any]:
    metric = job.metrics.get(job.plan.metric)
    ran = job.started_at is not None and job.finished_at is not None
    trial = {
        "trial": 0,
        "job_id": job.id,
        "parameters": {},
        "metric": metric,
        "epoch": None,
        "status": job.state.value,
        "duration_s": round((job.finished_at or 0.0) - (job.started_at or 0.0), 1) if ran else None,
    }
    won = {"trial": 0, "job_id": job.id, "metric": metric, "reason": "the only trial"}
    return {
        "leaderboard": [trial],
        "winner": won if job.state is JobState.SUCCEEDED else None,
        "baseline": {"status": "unavailable", "reason": "a study of one trial evaluates nothing before it"},
        "budget": {"max_trials": 1},
        "eta_s": job.eta_s,
    }


def portable(path: Path, home: Path) -> str:
    """Relative to the home where it lies inside."""
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
