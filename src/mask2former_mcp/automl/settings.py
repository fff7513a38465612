"""A study's settings as they are now: the Plan's, with what a resume changed."""

from typing import Any

from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.jobs.job import BUDGET, Job


def settings_of(job: Job) -> StudySettings:
    changed = {key.removeprefix(BUDGET): value for key, value in job.changes.items() if key.startswith(BUDGET)}
    planned: dict[str, Any] = job.plan.study or {}
    return StudySettings.model_validate({**planned, **changed})


def as_changes(changed: dict[str, Any]) -> dict[str, Any]:
    return {BUDGET + name: value for name, value in changed.items()}
