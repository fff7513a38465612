"""A job as the tools show it: at most ten fields, the same everywhere; get_job and lists add what it is `about`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mask2former_mcp.automl import result
from mask2former_mcp.automl.settings import settings_of
from mask2former_mcp.errors import StoreError
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.views import JobViews
from mask2former_mcp.server.schema import Schema

_STATES = [state.value for state in JobState]
_NULLABLE_NUMBER: Schema = {"type": ["number", "null"]}
_PROPERTIES: dict[str, Schema] = {
    "job_id": {"type": "string"},
    "action": {"type": "string"},
    "status": {"enum": _STATES},
    "phase": {"type": "string"},
    "progress": {"type": "number"},
    "eta_s": _NULLABLE_NUMBER,
    "metrics": {"type": "object", "description": "A training's are its best epoch's."},
    "message": {"type": "string"},
    "error_code": {"type": ["string", "null"]},
    "next": {"type": "string"},
}
SUMMARY_SCHEMA: Schema = {"type": "object", "properties": _PROPERTIES, "required": list(_PROPERTIES)}

# What a summary shows of the best epoch; get_job_metrics has everything.
SHOWN_METRICS = ("mIoU", "PQ", "SQ", "RQ", "AP", "ACC_all", "val_loss", "train_loss")
_FOLLOW_UPS = {
    "train": "evaluate, export or inference with parent_job_id='{id}'",
    "evaluate": "list_artifacts(job_id='{id}') for metrics and pictures",
    "export": "list_artifacts(job_id='{id}') for the exported model",
    "inference": "list_artifacts(job_id='{id}') for overlays and results",
}


def summary(job: Job, *, message: str | None = None) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "action": job.action,
        "status": job.state.value,
        "phase": job.phase,
        "progress": round(job.progress, 4),
        "eta_s": None if job.eta_s is None else round(job.eta_s, 1),
        "metrics": {name: round(job.metrics[name], 4) for name in SHOWN_METRICS if name in job.metrics},
        "message": job.message if message is None else message,
        "error_code": job.error_code,
        "next": next_step(job),
    }


def next_step(job: Job) -> str:
    """The one call that makes sense now."""
    if job.state in (JobState.FAILED, JobState.LOST):
        return f"{_look(job)}, then resume_job(job_id='{job.id}')"
    if job.plan.study is not None and not job.state.terminal and settings_of(job).max_trials > 1:
        return f"wait_for_job(job_id='{job.id}'); get_job(job_id='{job.id}') shows the leaderboard"
    if job.state is JobState.CANCELLED:
        return f"resume_job(job_id='{job.id}')"
    if job.state is JobState.SUCCEEDED:
        return _FOLLOW_UPS.get(job.action, "list_artifacts(job_id='{id}')").format(id=job.id)
    return f"wait_for_job(job_id='{job.id}')"


def _look(job: Job) -> str:
    """Where the cause of a failure shows: a job that never started has an empty log."""
    if job.error_code == "dataset_invalid" and (dataset := _dataset(job)):
        return f"check_dataset(dataset='{dataset}') and repair what it finds"
    if job.error_code in ("cannot_start", "engine_missing", "platform_away", "image_not_available"):
        return f"doctor(platform='{job.plan.platform}') and mend what it finds"
    return f"get_job_logs(job_id='{job.id}')"


def about(job: Job) -> dict[str, Any]:
    """Which job it is, for one who has forgotten its id; what does not apply is left out."""
    facts = {
        "created_at": datetime.fromtimestamp(job.created_at, UTC).isoformat(timespec="seconds"),
        "run_name": job.run_name,
        "parent_job_id": job.parent_job_id,
        "dataset": _dataset(job),
        "metric": job.plan.metric if job.action in ("train", "evaluate") else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _dataset(job: Job) -> str | None:
    """The folder that the action is about."""
    role = {"train": "train", "evaluate": "eval", "inference": "inference"}.get(job.action)
    found = job.plan.datasets.get(role) if role else None
    return str(found["uri"]) if found and "uri" in found else None


def listed(job: Job) -> dict[str, Any]:
    """A row of a list, ten fields: the summary, what it is about, and for a member of a study whose."""
    whose = membership(job)
    left_out = ("next", "error_code", "eta_s") if whose else ("next",)
    return {
        **{name: value for name, value in summary(job).items() if name not in left_out},
        "about": about(job),
        **whose,
    }


def unreadable(rows: Sequence[StoreError]) -> dict[str, Any]:
    """What a list says of the rows that it had to leave out; nothing where there are none."""
    found = [{**row.details, "message": row.message, "fix": row.fix} for row in rows]
    return {"unreadable": found} if found else {}


def headline(job: Job) -> str:
    """One line a person understands: `train-7f3k9q2d running 42% (epoch 5 of 12, best mIoU 0.712, 3 min left)`."""
    parts = [job.phase] if job.phase else []
    if job.action == "train" and not job.state.terminal and job.plan.metric in job.metrics:
        parts.append(f"best {job.plan.metric} {job.metrics[job.plan.metric]:.3f}")
    if not job.state.terminal and job.eta_s is not None:
        parts.append(f"{duration(job.eta_s)} left")
    percent = "" if job.state.terminal else f" {job.progress:.0%}"
    return f"{job.id} {job.state.value}{percent}" + (f" ({', '.join(parts)})" if parts else "")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def study(job: Job, jobs: JobViews) -> dict[str, Any] | None:
    """The study that a train job on the AutoML route is: leaderboard, winner, baseline, budget; `result` and `pictures`
    are links. None for other jobs."""
    whole = study_result(job, jobs)
    if whole is None:
        return None
    facts = result.shown(whole)
    pictures = [f"m2f://jobs/{job.id}/artifacts/{path}" for path in facts["pictures"] or ()]
    return {**facts, "pictures": pictures, "result": f"m2f://jobs/{job.id}/study"}


def study_result(job: Job, jobs: JobViews) -> dict[str, Any] | None:
    """The whole result: full spec of the winner, all trials, failures with their causes."""
    return None if job.plan.study is None else result.whole(job, jobs)


def membership(job: Job) -> dict[str, Any]:
    """For lists: whose trial a job is; {} for one that stands alone."""
    if job.study_id in (None, job.id):
        return {}
    return {"study_id": job.study_id, "trial": job.trial}
