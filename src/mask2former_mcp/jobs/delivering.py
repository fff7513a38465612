"""The supervisors' side of results in S3. Nothing happens here for a job whose results stay on this machine."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mask2former_mcp.errors import Mask2FormerError
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.settings import Settings
from mask2former_mcp.staging.uri import SCHEME

if TYPE_CHECKING:
    from mask2former_mcp.jobs.delivery import Delivery


_log = logging.getLogger("mask2former_mcp.delivery")


class Delivering:
    """Of the one job that a supervisor follows."""

    def __init__(self, settings: Settings, store: JobStore, environ: Mapping[str, str]) -> None:
        self._settings, self._store, self._environ = settings, store, environ
        self._delivery: Delivery | None = None

    def claim(self, job: Job) -> None:
        """Before anything runs: the prefix is this job's and can be written, or an error says why not."""
        if delivery := self._of(job):
            delivery.claim()

    def start(self, job: Job) -> None:
        if delivery := self._of(job):
            delivery.start()

    def finish(self, job: Job, state: JobState, message: str, code: str | None) -> tuple[JobState, str, str | None]:
        """How the job ends once its results have been brought to S3. The same, unless they have not all arrived."""
        delivery = self._of(job)
        if delivery is None:
            return state, message, code
        self._store.update(job.id, job.attempt, phase=f"uploading results to {delivery.prefix}", eta_s=None)
        metrics = self._store.get(job.id).metrics
        reason = delivery.finish(
            {"state": state.value, "message": message, "error_code": code, "metrics": metrics, "attempt": job.attempt}
        )
        if reason is None or reason in message:
            return state, message, code
        here = Folders.of(self._store.home, job).results
        words = f"not all results are in {delivery.prefix}: {reason}. They are in {here}"
        if state is JobState.SUCCEEDED:
            return JobState.FAILED, f"{message} But {words}; resume_job brings the rest.", "upload_failed"
        return state, f"{message} And {words}.", code

    def close(self, job: Job, state: JobState, message: str, code: str) -> None:
        """The record of a job that was given up; best effort, because nobody waits for it."""
        try:
            if delivery := self._of(job):
                delivery.close({**self._standing(job.id), "state": state.value, "message": message, "error_code": code})
        except (Mask2FormerError, OSError) as error:
            _log.warning("%s: its record was not uploaded: %s", job.id, error)

    def _standing(self, job_id: str) -> dict[str, Any]:
        job = self._store.get(job_id)
        return {"state": job.state.value, "phase": job.phase, "metrics": job.metrics, "attempt": job.attempt}

    def _of(self, job: Job) -> "Delivery | None":
        if self._delivery is None and (job.plan.results_dir or "").startswith(SCHEME):
            # Imported here: boto3 takes a quarter of a second to import, and only results in S3 need it.
            from mask2former_mcp.jobs.delivery import Delivery

            folders = Folders.of(self._store.home, job)
            self._delivery = Delivery(job, folders, self._settings, self._environ, lambda: self._standing(job.id))
        return self._delivery
