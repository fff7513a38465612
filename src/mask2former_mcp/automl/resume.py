"""What resume_job may change of a study."""

from typing import Any

from mask2former_mcp.automl import budget
from mask2former_mcp.automl.planner import devices_of
from mask2former_mcp.automl.settings import as_changes, settings_of
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import AutomlSettings


def _kind(job: Job) -> str:
    if job.action == "train" and job.plan.automl.route == "automl":
        return "is a study of one trial, study and trial in one job"
    return f"is a plain {job.action} job"


def changes(job: Job, num_epochs: int | None, asked: AutomlSettings | None, machine: Machine) -> dict[str, Any] | None:
    """For Jobs.resume: what to record with the study; None for a job that is no study. InvalidRequest says why not."""
    if job.plan.study is None:
        if asked is not None:
            raise InvalidRequest(
                f"{job.id} {_kind(job)}: there is no search whose budget could grow",
                fix='A search is a study of its own: call train with the same arguments and automl={"max_trials": 4}, '
                "whose trial 0 is this run again; num_epochs trains this one on.",
            )
        return None
    if num_epochs is not None:
        raise InvalidRequest(
            f"{job.id} is a study: all its trials are compared at {settings_of(job).epochs} epochs",
            fix="Pass automl with a bigger max_trials, or resume_job the winner's job with num_epochs.",
        )
    devices = devices_of(machine, job.plan.spec.get("train") or {})
    finished = job.state is JobState.SUCCEEDED
    return as_changes(budget.resumed(settings_of(job), asked, finished=finished, devices=devices))
