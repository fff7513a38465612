"""Jobs that belong to another job: the trials and evaluations of a study. What jobs/ knows of a study is this file."""

import json
from collections.abc import Sequence
from pathlib import Path

from mask2former_mcp.errors import NotFound
from mask2former_mcp.jobs.job import BUDGET, Job
from mask2former_mcp.jobs.store import JobStore

STUDY_FILE = "study.json"  # in a study's results folder: its leaderboard and, at the end, its winner
_PAGE = 200


def is_member(job: Job) -> bool:
    return job.study_id not in (None, job.id)


def width(store: JobStore, job: Job) -> int:
    """How many jobs of its study may run at once; 1 for a job of no study.

    Read from the study's row each time, so that whoever revives a trial lets it run beside the others.
    """
    if job.study_id is None or not is_member(job):
        return 1
    try:
        study = store.get(job.study_id)
    except NotFound:
        return 1
    return _budget(study, "max_concurrent")


def members(store: JobStore, study_id: str) -> list[Job]:
    """All members of a study, newest first."""
    found: list[Job] = []
    cursor: str | None = None
    while True:
        page, cursor = store.list(study_id=study_id, limit=_PAGE, cursor=cursor)
        found += [job for job in page if job.id != study_id]
        if cursor is None:
            return found


def outsiders(store: JobStore, study_id: str, inside: Sequence[Job]) -> tuple[str, ...]:
    """Jobs that use files of a study or of its members without belonging to it."""
    ids = {study_id, *(job.id for job in inside)}
    return tuple(dict.fromkeys(name for job_id in ids for name in store.dependents(job_id) if name not in ids))


def find_winner(results: Path) -> str | None:
    """The job that won the study with these results; None while there is none."""
    return _named(results, "winner")


def shown_trial(store: JobStore, study: Job, results: Path) -> str | None:
    """The trial that a study shows as its own: the one that won or leads, an only trial from its start to any end."""
    if leading := _named(results, "winner") or _named(results, "best_so_far"):
        return leading
    if _budget(study, "max_trials") > 1:
        return None
    return next((job.id for job in members(store, study.id) if job.trial == 0), None)


def live_study(store: JobStore, job: Job) -> Job | None:
    """The study that a job belongs to, where it goes on; None for a job that stands alone, or whose study has ended."""
    if job.study_id is None or not is_member(job):
        return None
    try:
        study = store.get(job.study_id)
    except NotFound:
        return None
    return None if study.state.terminal else study


def winner_id(job: Job, results: Path) -> str:
    """The job that won a study. NotFound while there is none."""
    found = find_winner(results)
    if found is None:
        raise NotFound(
            f"study {job.id} ({job.state}) has no winner",
            fix=f"wait_for_job {job.id}, or pass the id of one of its trials (get_job {job.id} lists them).",
        )
    return found


def _budget(study: Job, name: str) -> int:
    """A number of the study's settings, with what a resume changed."""
    return int(study.changes.get(f"{BUDGET}{name}", (study.plan.study or {}).get(name, 1)))


def _named(results: Path, place: str) -> str | None:
    """The job that stands at this place of a study's result."""
    try:
        found = json.loads((results / STUDY_FILE).read_text(encoding="utf-8"))[place]
    except (OSError, ValueError, KeyError):
        return None
    return str(found["job_id"]) if found else None
