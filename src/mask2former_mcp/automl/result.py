"""A study's result: `study.json` in its results folder, written while it runs, final when it has ended.

It is what get_job shows of a study and what later actions read the winner from. Paths in it are relative to the home.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former_mcp.automl import report
from mask2former_mcp.jobs.job import Job
from mask2former_mcp.jobs.members import STUDY_FILE as FILE
from mask2former_mcp.jobs.views import JobViews

# What get_job answers; the whole result has more (full spec, all trials, failures).
_SHOWN = ("leaderboard", "winner", "best_so_far", "baseline", "final", "budget", "eta_s", "duration_s", "pictures")
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


def whole(job: Job, jobs: JobViews) -> dict[str, Any]:
    """Everything there is to say of a study, ended or not."""
    content = read(jobs.results_dir(job.id))
    if content is None:
        planned = (job.plan.study or {}).get("max_trials")
        return {"leaderboard": [], "budget": {"max_trials": planned}, "eta_s": job.eta_s}
    if not job.state.terminal and content.get("winner"):
        # Resumed, and not yet looked at by its supervisor: who won then leads now.
        content |= {"winner": None, "best_so_far": report.so_far(content["winner"])}
    return {**content, "eta_s": job.eta_s}


def shown(content: Mapping[str, Any]) -> dict[str, Any]:
    """The compact form: the winner without its spec."""
    facts = {name: content.get(name) for name in _SHOWN}
    if winner := content.get("winner"):
        facts["winner"] = {name: winner[name] for name in _WINNER if name in winner}
    return facts
