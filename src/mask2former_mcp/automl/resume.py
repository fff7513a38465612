"""What resume_job may change of a study: more trials, another width, a new time budget; of an only trial its epochs."""

from collections.abc import Mapping
from typing import Any

from mask2former_mcp.automl import budget
from mask2former_mcp.automl.algorithms import algorithm, require_numbers
from mask2former_mcp.automl.budget import Devices, StudySettings
from mask2former_mcp.automl.planner import devices_of, left_out
from mask2former_mcp.automl.settings import as_changes, settings_of
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import AutomlSettings

_MAY_CHANGE = ("max_trials", "max_concurrent", "time_budget_minutes")
_MORE = 4  # trials, in the hint of what to ask for


def changes(job: Job, num_epochs: int | None, asked: AutomlSettings | None, machine: Machine) -> dict[str, Any] | None:
    """For Jobs.resume: what to record with the study; None for a job that is no study. InvalidRequest says why not."""
    if job.plan.study is None:
        if asked is not None:
            raise InvalidRequest(
                f"{job.id} is a plain {job.action} job: there is no search whose budget could grow",
                fix='A search is a study of its own: call train with the same arguments and automl={"max_trials": 4}, '
                "whose trial 0 is this run again; num_epochs trains this one on.",
            )
        return None
    settings, finished = settings_of(job), job.state is JobState.SUCCEEDED
    longer = _longer(job, settings, num_epochs, finished=finished)
    settings = settings.model_copy(update=longer)
    train = job.plan.spec.get("train") or {}
    bigger = resumed(settings, asked, train, devices_of(machine, train), finished=finished and not longer)
    # The spec key as well: what the job shows as its spec is what its trials run with.
    return as_changes({**longer, **bigger}) | ({"train.num_epochs": longer["epochs"]} if longer else {})


def resumed(
    settings: StudySettings, asked: AutomlSettings | None, train: Mapping[str, Any], devices: Devices, *, finished: bool
) -> dict[str, Any]:
    """Settings that change. `train`: the section of the resolved spec. InvalidRequest for what cannot change.

    `finished`: the study had come to its end, so that resuming it only makes sense with a bigger budget.
    """
    asked = asked or AutomlSettings()
    for name, value in asked.model_dump().items():
        if value is not None and name not in _MAY_CHANGE:
            raise InvalidRequest(
                f"automl.{name} cannot change in the middle of a study: its trials would not be comparable",
                fix="Change max_trials, max_concurrent or time_budget_minutes, or start a new study with train.",
            )
    if asked.max_trials is not None and asked.max_trials < settings.max_trials:
        raise InvalidRequest(
            f"automl.max_trials={asked.max_trials}, but this study already has {settings.max_trials}",
            fix=f"Pass max_trials of {settings.max_trials + 1} or more.",
        )
    grows = (asked.max_trials or 0) > settings.max_trials
    if finished and not grows and asked.time_budget_minutes is None:
        raise _used_up(settings)
    found: dict[str, Any] = {}
    if grows and settings.max_trials == 1:
        found |= _first_search(settings, asked, train, devices)
    if asked.max_trials is not None:
        # Said outright, the number of trials is the budget.
        found |= {"max_trials": asked.max_trials, "total_epochs": None}
    if asked.max_concurrent is not None:
        found["max_concurrent"] = budget.at_once(asked, devices)[0]
    if asked.time_budget_minutes is not None:
        found["time_budget_s"] = asked.time_budget_minutes * 60
    return found


def _longer(job: Job, settings: StudySettings, num_epochs: int | None, *, finished: bool) -> dict[str, Any]:
    """An only trial is compared with nobody, so that it may train on, as a plain job may."""
    if num_epochs is None:
        return {}
    if settings.max_trials > 1:
        raise InvalidRequest(
            f"{job.id} is a study: all its trials are compared at {settings.epochs} epochs",
            fix="Pass automl with a bigger max_trials, or resume_job the winner's job with num_epochs.",
        )
    least = settings.epochs + 1 if finished else settings.epochs
    if num_epochs < least:
        raise InvalidRequest(
            f"num_epochs={num_epochs}, but {job.id} has {settings.epochs}", fix=f"Pass num_epochs of {least} or more."
        )
    return {"epochs": num_epochs, "first_rung": num_epochs}


def _used_up(settings: StudySettings) -> InvalidRequest:
    if settings.max_trials == 1:
        return InvalidRequest(
            f"this study's only trial has trained all of its {settings.epochs} epochs"
            if settings.time_budget_s is None
            else f"this study has used its budget of 1 trial or {budget.hours(settings.time_budget_s / 3600)}",
            fix=f"Pass num_epochs above {settings.epochs} to train on"
            + (', automl={"time_budget_minutes": ..} to go on with what it halted' if settings.time_budget_s else "")
            + f', or automl={{"max_trials": {_MORE}}} to search around it.',
        )
    return InvalidRequest(
        f"this study has used its budget of {settings.max_trials} trials"
        + (f" or {budget.hours(settings.time_budget_s / 3600)}" if settings.time_budget_s else ""),
        fix=f'Pass a bigger one: automl={{"max_trials": {settings.max_trials + _MORE}}}'
        + (', or "time_budget_minutes" to go on with what it halted.' if settings.time_budget_s else "."),
    )


def _first_search(
    settings: StudySettings, asked: AutomlSettings, train: Mapping[str, Any], devices: Devices
) -> dict[str, Any]:
    """What one trial had no use for: rungs, and how many run at once. InvalidRequest where nothing can be searched."""
    if not settings.space.parameters:
        raise InvalidRequest(
            f"automl.max_trials={asked.max_trials}, but nothing is left to search ({left_out(settings.space)})",
            fix="Start a new study: train with automl.search_space naming the keys to vary.",
        )
    chosen = algorithm(settings.algorithm)
    require_numbers(chosen, settings.space.numbers)
    first = budget.first_rung(chosen, settings.epochs, settings.reduction_factor)
    words = (*settings.adjustments, *budget.interval_words(train, first))
    side_by_side = min(budget.at_once(asked, devices)[0], asked.max_trials or 1)
    return {"first_rung": first, "adjustments": words, "max_concurrent": side_by_side}
