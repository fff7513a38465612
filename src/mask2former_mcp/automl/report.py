"""What a study came to, as one mapping: the content of study.json. No Optuna: the server reads from here too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mask2former_mcp import lineage
from mask2former_mcp.automl import budget, leaderboard, trials
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.leaderboard import TrialRecord
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.prepare import resolved_spec
from mask2former_mcp.jobs.views import JobViews

UNAVAILABLE = "unavailable"
_LEADING = ("trial", "job_id", "metric", "epoch", "parameters", "reason")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What stands beside the trials. `winner` is None until the study has ended with one."""

    baseline: Mapping[str, Any]
    final: Mapping[str, Any] | None = None
    winner: Mapping[str, Any] | None = None
    pictures: Sequence[str] = ()
    not_drawn: Mapping[str, str] = field(default_factory=dict)
    importances: Mapping[str, float] = field(default_factory=dict)
    eta_s: float | None = None


def unavailable(reason: str) -> dict[str, Any]:
    """An evaluation that does not take place."""
    return {"status": UNAVAILABLE, "reason": reason}


def compose(
    study_id: str, settings: StudySettings, records: Sequence[TrialRecord], outcome: Outcome, duration_s: float | None
) -> dict[str, Any]:
    failures = [{"trial": r.trial, "job_id": r.job_id, "cause": r.cause} for r in records if r.status == "failed"]
    return {
        "study_id": study_id,
        "algorithm": settings.algorithm,
        "metric": settings.metric,
        "direction": "maximize",
        "search_space": settings.space.summary(),
        "leaderboard": leaderboard.compact(records),
        "winner": None if outcome.winner is None else dict(outcome.winner),
        "best_so_far": None if outcome.winner is not None else _best_so_far(records, settings.metric),
        "baseline": dict(outcome.baseline),
        "final": None if outcome.final is None else dict(outcome.final),
        "budget": {
            "max_trials": settings.max_trials,
            "trials_started": len(records),
            "trials_ended": sum(record.status != "running" for record in records),
            "max_epochs": settings.epochs,
            "epochs_trained": sum(record.epochs for record in records),
            "epochs_at_most": budget.at_most_epochs(settings),
            "max_concurrent": settings.max_concurrent,
            "time_budget_s": settings.time_budget_s,
        },
        "eta_s": None if outcome.eta_s is None else round(outcome.eta_s, 1),
        "duration_s": None if duration_s is None else round(duration_s, 1),
        "failures": failures,
        "adjustments": [*settings.adjustments, *(f"trial {r.trial}: {a}" for r in records for a in r.adjustments)],
        "importances": dict(outcome.importances),
        "pictures": list(outcome.pictures),
        "not_drawn": dict(outcome.not_drawn),
        "trials": [
            {**record.line(), "parameters": record.parameters, "epochs": record.epochs, "cause": record.cause}
            for record in sorted(records, key=lambda record: record.trial)
        ],
    }


def winner_facts(
    found: TrialRecord, jobs: JobViews, settings: StudySettings, plain: TrialRecord | None
) -> dict[str, Any]:
    """The winner with its reasons: job, checkpoint, sha256, epoch, and the spec that made it. `plain`: trial 0."""
    assert found.job_id is not None  # a trial wins with a metric and a checkpoint, and these come from a job
    assert found.metric is not None
    job = jobs.store.get(found.job_id)
    folders = Folders.of(jobs.store.home, job)
    chosen = lineage.checkpoint(jobs.parent(job.id), f"epoch={found.epoch}", metric=settings.metric)
    reason = f"best {settings.metric} {found.metric:.4f}, at epoch {found.epoch} (counted from 0)"
    if settings.max_trials == 1:
        reason += "; it is the only trial, the plain run"
    elif found.trial == 0:
        reason += "; it is trial 0, the plain run: the search found nothing better"
    elif plain is not None and plain.metric is not None:
        reason += f"; the plain run (trial 0) reached {plain.metric:.4f}"
    if found.status != "finished":
        reason += f"; {found.cause}, and no trial ran to its end"
    return {
        "trial": found.trial,
        "job_id": found.job_id,
        "metric": found.metric,
        "epoch": found.epoch,
        "checkpoint": _portable(chosen.path, jobs.store.home),
        "sha256": chosen.sha256,
        "parameters": found.parameters,
        "reason": reason,
        "spec": trials.handed_over(resolved_spec(job, folders)),
    }


def so_far(winner: Mapping[str, Any]) -> dict[str, Any]:
    """The winner of a study that goes on: what leads, no longer what won."""
    facts = {name: winner[name] for name in _LEADING if name in winner}
    return {**facts, "reason": f"so far: {facts.get('reason', '')}"}


def _best_so_far(records: Sequence[TrialRecord], metric: str) -> dict[str, Any] | None:
    leading = leaderboard.leading(records)
    if leading is None:
        return None
    still = ", and it still runs" if leading.status == "running" else ""
    return {
        "trial": leading.trial,
        "job_id": leading.job_id,
        "metric": leading.metric,
        "epoch": leading.epoch,
        "parameters": leading.parameters,
        "reason": f"so far: best {metric} {leading.metric:.4f} of {len(records)} trial(s){still}; not the end",
    }


def _portable(path: Path, home: Path) -> str:
    """Relative to the home where it lies inside."""
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
