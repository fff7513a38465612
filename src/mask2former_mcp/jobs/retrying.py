"""Another attempt by itself: which troubles are worth one, and how many there are."""

from dataclasses import replace

from mask2former_mcp.errors import Mask2FormerError, NotReady
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.jobs.verdict import Verdict


def not_prepared(error: Mask2FormerError) -> Verdict:
    """Why a job could not be prepared. A store of the data that is away for a while is the machine's trouble."""
    passes = isinstance(error, NotReady) or bool(error.details.get("retry"))
    return Verdict(JobState.FAILED, f"{error.message}. {error.fix}", error.code, is_retried=passes)


def try_again(
    store: JobStore, job: Job, verdict: Verdict, *, max_restarts: int, exit_code: int | None = None
) -> Verdict | None:
    """Queue the next attempt, because the machine failed and not the program; its end, where it has had them all."""
    if job.restarts >= max_restarts:
        after = f" This was the last of {job.restarts} automatic restarts." if job.restarts else ""
        return replace(verdict, message=verdict.message + after)
    store.history.end(job.id, job.attempt, verdict.state, exit_code)
    reason = f"attempt {job.attempt} failed, {verdict.error_code}: {verdict.message}"
    store.retry(job.id, attempt=job.attempt, restarts=job.restarts + 1, reason=reason, ended=JobState.FAILED)
    return None
