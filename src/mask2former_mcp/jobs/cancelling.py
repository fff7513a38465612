"""Asking jobs to end. Whoever follows a job sees the request in the store and does it."""

from collections.abc import Sequence

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.members import members
from mask2former_mcp.jobs.store import JobStore


def ask_to_end(store: JobStore, job_id: str) -> None:
    """A queued job ends at once, another one when its processes are gone; one that has ended stays as it is."""
    if store.transition(
        job_id, JobState.CANCELLED, expect=(JobState.QUEUED,), text="cancelled while queued", phase="cancelled",
        message="Cancelled while it was queued. resume_job queues it again.",
    ):  # fmt: skip
        return
    live = (JobState.PREPARING, JobState.RUNNING)
    store.transition(job_id, JobState.STOPPING, expect=live, text="cancel asked for", phase="stopping")


def live_members(store: JobStore, job: Job) -> Sequence[Job]:
    """Trials and evaluations of a study that still run; none for a job that is no study."""
    if job.plan.study is None:
        return ()
    return [member for member in members(store, job.id) if not member.state.terminal]
