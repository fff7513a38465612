"""The process that follows one study: `python -m mask2former_mcp.automl.supervisor --job ID` (home, settings: M2F_*).

Like any job's supervisor it looks at the state in the store and does the next step for that state, so a successor needs
no other knowledge. It holds no device: its trials are jobs of their own, with supervisors of their own, and go on
whatever happens to this process.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mask2former_mcp import bundle
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.ending import Evaluations
from mask2former_mcp.automl.record import WITH_STUDY
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.automl.search import Search
from mask2former_mcp.automl.settings import settings_of
from mask2former_mcp.automl.view import ONE_TRIAL, StudyView
from mask2former_mcp.datasets.verify import verify
from mask2former_mcp.errors import Mask2FormerError, StoreError
from mask2former_mcp.jobs.cached import cache_bound
from mask2former_mcp.jobs.delivering import Delivering
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.following import PHASES
from mask2former_mcp.jobs.job import LIVE, Job, JobState
from mask2former_mcp.jobs.prepare import resolved_spec
from mask2former_mcp.jobs.retrying import not_prepared, try_again
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.jobs.verdict import Verdict
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.platforms.locks import ProcessLock
from mask2former_mcp.platforms.process import identify
from mask2former_mcp.settings import Settings
from mask2former_mcp.spec import dotted
from mask2former_mcp.staging.prepare import stage

_LOCK_PATIENCE_S = 15.0  # another supervisor may be on its way out
_RECONCILE_EVERY_S = 5.0
_FORMATS = ("coco_panoptic", "coco", "ade")

_log = logging.getLogger("mask2former_mcp.study")


class Stopped(Exception):
    """Somebody asked for the end while the data was staged."""


class StudySupervisor:
    """Steps of one study. Every write names the attempt, so that an overtaken supervisor changes nothing."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs, self.store = jobs, jobs.store
        self.settings, self.environ = jobs.settings, jobs.environ
        self.delivering = Delivering(self.settings, self.store, self.environ)
        self._reconciled = time.monotonic()

    def run(self, job_id: str) -> None:
        while not (job := self.store.get(job_id)).state.terminal:
            match job.state:
                case JobState.QUEUED:
                    self._begin(job)
                case JobState.PREPARING:
                    self._prepare(job)
                case JobState.RUNNING:
                    self._search(job)
                case JobState.STOPPING:
                    self._stop(job)

    # -- queued, preparing --

    def _begin(self, job: Job) -> None:
        self.store.transition(
            job.id, JobState.PREPARING, expect=(JobState.QUEUED,), attempt=job.attempt, text="a study begins",
            phase="preparing", started_at=time.time(),
            message=f"{ONE_TRIAL}." if settings_of(job).max_trials == 1 else "",
        )  # fmt: skip

    def _prepare(self, job: Job) -> None:
        """Stage and check the data once, for all trials."""
        folders = Folders.of(self.store.home, job)

        def report(what: str, done: float) -> None:
            if self.store.state(job.id) != (JobState.PREPARING, job.attempt):
                raise Stopped
            self.store.update(job.id, job.attempt, phase=f"{what} ({done:.0%})" if done else what)

        try:
            folders.results.mkdir(parents=True, exist_ok=True)
            self.delivering.claim(job)
            stage(
                [item.model_dump() for item in job.plan.staging],
                home=folders.home,
                job_dir=folders.job,
                progress=report,
                bound=cache_bound(self.settings, self.store),
            )
            self._verify(resolved_spec(job, folders), report)
        except Stopped:
            return
        except Mask2FormerError as error:
            self._not_prepared(job, not_prepared(error))
            return
        except OSError as error:
            self._end(job, Verdict(JobState.FAILED, f"Preparing failed: {error}.", "preparing_failed"))
            return
        self.store.history.begin(job.id, job.attempt, resumed_from=None, resume_epoch=None, status_offset=0)
        self.store.transition(
            job.id, JobState.RUNNING, expect=(JobState.PREPARING,), attempt=job.attempt, text="searching",
            phase="searching",
        )  # fmt: skip

    def _not_prepared(self, job: Job, verdict: Verdict) -> None:
        if not verdict.is_retried:
            self._end(job, verdict)
        elif end := try_again(self.store, job, verdict, max_restarts=self.settings.max_restarts):
            self._end(job, end)

    def _verify(self, spec: Mapping[str, Any], report: Any) -> None:
        dataset = spec.get("dataset") or {}
        roles = [role for role in ("train", "val") if (dataset.get(role) or {}).get("type") in _FORMATS]
        if roles:
            report("checking the data", 0.0)
            verify(dataset, roles, watch=lambda what, done, total: report(f"checking {what}", done / max(total, 1)))

    # -- running --

    def _search(self, job: Job) -> None:
        """Until the study has its result, or is not running any more."""
        settings = settings_of(job)
        folders = Folders.of(self.store.home, job)
        search = Search(folders.job, settings, dotted.flatten(job.plan.spec))
        view = self._view(job, settings, search, folders)
        got_on = False
        self.delivering.start(job)
        try:
            while self.store.state(job.id) == (JobState.RUNNING, job.attempt):
                self._look_after_orphans()
                if view.look():
                    self._end(job, view.conclude())
                    return
                if not got_on:
                    # Not before the first look, nor at the last: a study that kills its supervisors there ends as lost.
                    got_on = self.store.update(job.id, job.attempt, spawns=0)
                time.sleep(self.settings.poll_s)
        finally:
            search.close()

    def _view(self, job: Job, settings: StudySettings, search: Search, folders: Folders) -> StudyView:
        planner = Planner(bundle.load(self.settings.skill_dir), self.settings, self.jobs, environ=self.environ)
        running = RunningStudy(
            job, settings, search, self.jobs, planner,
            started_at=job.started_at or time.time(), keep_all=self.settings.keep_checkpoints,
        )  # fmt: skip
        return StudyView(job, settings, running, Evaluations(job, settings, self.jobs, planner), folders)

    def _look_after_orphans(self) -> None:
        """Nobody else may be there to give a trial a new supervisor."""
        if time.monotonic() - self._reconciled > _RECONCILE_EVERY_S:
            self._reconciled = time.monotonic()
            self.jobs.reconcile()

    # -- stopping --

    def _stop(self, job: Job) -> None:
        """End all members; what was trained stays, and resume_job goes on with it."""
        for member in self._live_members(job, []):  # at once: what follows needs a skill bundle, which may be broken
            self.jobs.cancel(member.id)
        folders = Folders.of(self.store.home, job)
        settings = settings_of(job)
        search = Search(folders.job, settings, dotted.flatten(job.plan.spec))
        view = self._view(job, settings, search, folders)
        unreadable: list[StoreError]
        try:
            view.running.take_up()
            for trial in search.open_trials():
                if trial.notes.get("stop") is None:
                    search.note(trial.number, halted=WITH_STUDY)
            while live := self._live_members(job, unreadable := []):
                for member in live:
                    self.jobs.cancel(member.id)
                self.store.update(job.id, job.attempt, phase=f"stopping {len(live)} job(s) of the study", eta_s=None)
                self._look_after_orphans()
                time.sleep(self.settings.poll_s)
            view.halt()
        finally:
            search.close()
        words = "Cancelled, with its trials." if not unreadable else _left_running(unreadable)
        self._end(job, Verdict(JobState.CANCELLED, f"{words} resume_job goes on with the same study."))

    def _live_members(self, job: Job, unreadable: list[StoreError]) -> list[Job]:
        found, _ = self.store.list(study_id=job.id, states=LIVE, limit=200, unreadable=unreadable.append)
        return [member for member in found if member.id != job.id]

    def _end(self, job: Job, verdict: Verdict) -> None:
        self.store.history.end(job.id, job.attempt, verdict.state, None)
        state, message, code = self.delivering.finish(job, verdict.state, verdict.message, verdict.error_code)
        self.store.transition(
            job.id, state, expect=LIVE, attempt=job.attempt, text=message, message=message, error_code=code,
            phase=PHASES[state], **({"progress": 1.0} if state is JobState.SUCCEEDED else {}),
        )  # fmt: skip


def _left_running(unreadable: Sequence[StoreError]) -> str:
    """What to say of members that nobody could ask to end."""
    names = ", ".join(str(row.details["job_id"]) for row in unreadable)
    return f"Cancelled, but {names} may still run: {unreadable[0].message}. {unreadable[0].fix}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mask2former-mcp study supervisor")
    parser.add_argument("--job", required=True)
    job_id = parser.parse_args(arguments).job
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    supervisor = StudySupervisor(Jobs(Settings.load(os.environ), os.environ))
    store = supervisor.store
    job = store.get(job_id)
    with ProcessLock(Folders.of(store.home, job).lock) as lock:
        if not lock.acquire(_LOCK_PATIENCE_S):
            _log.info("%s has a supervisor", job_id)
            return 0
        store.note_supervisor(job_id, dict(identify(os.getpid()) or {}), spawned=False)
        _log.info("%s: attempt %d, %s", job_id, job.attempt, job.state)
        supervisor.run(job_id)
        _log.info("%s: %s", job_id, store.get(job_id).state)
    supervisor.jobs.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
