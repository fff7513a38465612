"""A queued job's turn: its supervisor waits here until the job holds its devices."""

import time
from collections.abc import Mapping

from mask2former_mcp.errors import NotReady, StoreError
from mask2former_mcp.jobs.job import MAX_PHASE, Job, JobState
from mask2former_mcp.jobs.leases import Grant, Leases, Waiting
from mask2former_mcp.jobs.members import width
from mask2former_mcp.jobs.prepare import devices_wanted
from mask2former_mcp.jobs.reconcile import reconcile
from mask2former_mcp.jobs.spawn import supervised
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.jobs.verdict import Verdict
from mask2former_mcp.platforms.devices import Inventory, inventory
from mask2former_mcp.settings import Settings

_RECONCILE_EVERY = 10  # polls
_DRIVER_PATIENCE_S = 120.0  # a machine that has just been started may still be loading it


class Turn:
    """Of the one job that a supervisor follows."""

    def __init__(self, settings: Settings, store: JobStore, environ: Mapping[str, str]) -> None:
        self.leases = Leases(store.database)
        self._settings, self._store, self._environ = settings, store, environ

    def wait(self, job: Job) -> Verdict | None:
        """Until the devices are held and the job is preparing, or it is not queued any more. A Verdict: how it ends,
        because its turn will never come."""
        there = self._inventory(job)
        if not isinstance(there, Inventory):
            return there
        count = devices_wanted(job) if there.kind == "gpu" else 1
        if count > len(there.names):
            text = f"It asks for {count} GPUs; this machine has {len(there.names)} for jobs. Lower num_gpus."
            return Verdict(JobState.FAILED, text, "not_available")
        looked = time.monotonic()
        while self._is_queued(job):
            answer = self.leases.acquire(job.id, count, there, waits=self._waits)
            if isinstance(answer, Grant):
                self._begin(job, answer)
                return None
            job = self._tell(job, answer, count, there.kind)
            # Whoever is before us may have lost its supervisor.
            if time.monotonic() - looked > _RECONCILE_EVERY * self._settings.poll_s:
                looked = time.monotonic()
                reconcile(self._settings, self._store, self._environ)
            time.sleep(self._settings.poll_s)
        return None

    def cpu_slots(self, job: Job) -> int:
        """Without a GPU: the operator's slots, or as many as the job's study may use at once."""
        return max(self._settings.cpu_slots, width(self._store, job))

    def _is_queued(self, job: Job) -> bool:
        return self._store.state(job.id) == (JobState.QUEUED, job.attempt)

    def _begin(self, job: Job, grant: Grant) -> None:
        self._store.transition(
            job.id,
            JobState.PREPARING,
            expect=(JobState.QUEUED,),
            attempt=job.attempt,
            text=f"holds {', '.join(grant.devices)}",
            phase="preparing",
            started_at=time.time(),
        )

    def _tell(self, job: Job, waiting: Waiting, count: int, kind: str) -> Job:
        """Behind whom it waits becomes the job's phase. Returns the job as it then is."""
        what = "a CPU slot" if kind == "cpu" else f"{count} GPU" + ("s" if count > 1 else "")
        phase = f"waiting for {what} behind {', '.join(waiting.behind[:3]) or 'nobody'}"
        # This supervisor got on: however often the machine is started anew, a job that waits is not lost.
        if (phase != job.phase or job.spawns) and self._store.update(job.id, job.attempt, phase=phase, spawns=0):
            return self._store.get(job.id)
        return job

    def _inventory(self, job: Job) -> Inventory | Verdict | None:
        """What there is to lease; None when the job has ended meanwhile. A driver that does not answer is waited for:
        falling back to the CPU would turn hours into weeks, and nobody would know why."""
        deadline = time.monotonic() + _DRIVER_PATIENCE_S
        while self._is_queued(job):
            try:
                return inventory(self._environ, self._settings.gpus, self.cpu_slots(job))
            except NotReady as error:
                if time.monotonic() > deadline:
                    return Verdict(JobState.FAILED, f"{error.message}. {error.fix}", "not_available")
                self._store.update(job.id, job.attempt, phase=f"waiting: {error.message}"[:MAX_PHASE])
                time.sleep(self._settings.poll_s)
        return None

    def _waits(self, job_id: str) -> bool:
        try:
            return supervised(self._store, self._store.get(job_id))
        except StoreError:
            return False  # a row that does not read: nobody can start that job, and the others need not wait for it
