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
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mask2former_mcp import bundle
from mask2former_mcp.automl import ending, leaderboard, pictures, result
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.ending import Evaluations
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.automl.search import Search
from mask2former_mcp.automl.settings import settings_of
from mask2former_mcp.automl.trials import why
from mask2former_mcp.datasets.verify import verify
from mask2former_mcp.errors import Mask2FormerError
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.prepare import resolved_spec
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.platforms.locks import ProcessLock
from mask2former_mcp.platforms.process import identify
from mask2former_mcp.settings import Settings
from mask2former_mcp.spec import dotted
from mask2former_mcp.staging.prepare import stage

_LOCK_PATIENCE_S = 15.0  # another supervisor may be on its way out
_RECONCILE_EVERY_S = 5.0
_FORMATS = ("coco_panoptic", "coco", "ade")
_LIVE = tuple(state for state in JobState if not state.terminal)

_log = logging.getLogger("mask2former_mcp.study")


class Stopped(Exception):
    """Somebody asked for the end while the data was staged."""


class StudySupervisor:
    """Steps of one study. Every write names the attempt, so that an overtaken supervisor changes nothing."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self.settings = settings
        self.environ = environ
        self.jobs = Jobs(settings, environ)
        self.store = self.jobs.store
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
            stage([s.model_dump() for s in job.plan.staging], home=folders.home, job_dir=folders.job, progress=report)
            self._verify(resolved_spec(job, folders), report)
        except Stopped:
            return
        except Mask2FormerError as error:
            self._end(job, JobState.FAILED, why(error), error.code)
            return
        except OSError as error:
            self._end(job, JobState.FAILED, f"Preparing failed: {error}.", "preparing_failed")
            return
        self.store.history.begin(job.id, job.attempt, resumed_from=None, resume_epoch=None, status_offset=0)
        self.store.transition(
            job.id, JobState.RUNNING, expect=(JobState.PREPARING,), attempt=job.attempt, text="searching",
            phase="searching",
        )  # fmt: skip

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
        # Trials side by side on a machine without a GPU take a processor slot each.
        wide = replace(self.settings, cpu_slots=max(self.settings.cpu_slots, settings.max_concurrent))
        jobs = Jobs(wide, self.environ)
        planner = Planner(bundle.load(self.settings.skill_dir), self.settings, jobs, environ=self.environ)
        search = Search(folders.job, settings, dotted.flatten(job.plan.spec))
        running = RunningStudy(
            job, settings, search, jobs, planner,
            started_at=job.started_at or time.time(), keep_all=self.settings.keep_checkpoints,
        )  # fmt: skip
        view = StudyView(job, settings, running, Evaluations(job, settings, jobs, planner), folders)
        self.store.update(job.id, job.attempt, spawns=0)  # this supervisor got on
        try:
            while self.store.state(job.id) == (JobState.RUNNING, job.attempt):
                self._look_after_orphans(jobs)
                if view.look():
                    self._conclude(job, view)
                    return
                time.sleep(self.settings.poll_s)
        finally:
            search.close()
            jobs.close()

    def _look_after_orphans(self, jobs: Jobs) -> None:
        """Nobody else may be there to give a trial a new supervisor."""
        if time.monotonic() - self._reconciled > _RECONCILE_EVERY_S:
            self._reconciled = time.monotonic()
            jobs.reconcile()

    def _conclude(self, job: Job, view: "StudyView") -> None:
        message, won = view.conclude()
        if won:
            self._end(job, JobState.SUCCEEDED, message, None)
        else:
            self._end(job, JobState.FAILED, message, "no_winner")

    # -- stopping --

    def _stop(self, job: Job) -> None:
        """End all members; what was trained stays, and resume_job goes on with it."""
        folders = Folders.of(self.store.home, job)
        settings = settings_of(job)
        search = Search(folders.job, settings, dotted.flatten(job.plan.spec))
        try:
            for trial in search.open_trials():
                if trial.notes.get("stop") is None:
                    search.note(trial.number, halted=True)
        finally:
            search.close()
        while live := self._live_members(job):
            for member in live:
                self.jobs.cancel(member.id)
            self.store.update(job.id, job.attempt, phase=f"stopping {len(live)} job(s) of the study", eta_s=None)
            self._look_after_orphans(self.jobs)
            time.sleep(self.settings.poll_s)
        self._end(job, JobState.CANCELLED, "Cancelled, with its trials. resume_job goes on with the same study.", None)

    def _live_members(self, job: Job) -> list[Job]:
        found, _ = self.store.list(study_id=job.id, states=_LIVE, limit=200)
        return [member for member in found if member.id != job.id]

    def _end(self, job: Job, state: JobState, message: str, code: str | None) -> None:
        self.store.history.end(job.id, job.attempt, state, None)
        phases = {JobState.SUCCEEDED: "done", JobState.FAILED: "failed", JobState.CANCELLED: "cancelled"}
        self.store.transition(
            job.id, state, expect=_LIVE, attempt=job.attempt, text=message, message=message, error_code=code,
            phase=phases[state], **({"progress": 1.0} if state is JobState.SUCCEEDED else {}),
        )  # fmt: skip


class StudyView:
    """What a running study is doing, written to the store and to study.json; and whether it has come to its end."""

    def __init__(
        self, job: Job, settings: StudySettings, running: RunningStudy, evaluations: Evaluations, folders: Folders
    ) -> None:
        self.job, self.settings, self.running = job, settings, running
        self.evaluations, self.folders = evaluations, folders
        self.store = running.jobs.store
        self._shown: dict[str, Any] = {}
        self._written: dict[str, Any] = {}

    def look(self) -> bool:
        """One step; True when nothing is left to do but to say how it ended."""
        members = self.running.members()
        baseline = self.evaluations.baseline(members)
        if not ending.is_over(baseline):
            self._show("evaluating the starting weights", 0.0, None, {})
            self._write(baseline=baseline, final=None, won=None, drawn=(), eta_s=None)
            return False
        busy = self.running.step()
        members = self.running.members()
        records = self.running.records(members)
        best = leaderboard.winner(records)
        if not busy and best is not None:
            final = self.evaluations.final(members, best)
            self._show("evaluating the winner", 0.99, None, self._metrics(best))
            self._write(baseline=baseline, final=final, won=None, drawn=(), eta_s=None)
            return ending.is_over(final)
        eta = self.running.eta_s(records)
        left, trained = self.running.epochs_left(), self.running.epochs_trained()
        progress = 0.98 * trained / max(trained + left, 1.0)
        self._show(self._phase(records), progress, eta, self._metrics(best) if best else {})
        self._write(baseline=baseline, final=None, won=None, drawn=(), eta_s=eta)
        return not busy

    def conclude(self) -> tuple[str, bool]:
        """(closing words, whether somebody won). Checkpoints are tidied, pictures drawn, the result written."""
        self.running.tidy_all()
        members = self.running.members()
        records = self.running.records(members)
        best = leaderboard.winner(records)
        baseline = self.evaluations.baseline(members)
        _log.info("\n%s", leaderboard.table(records, self.settings.metric))
        if best is None:
            causes = "; ".join(f"trial {r.trial}: {r.cause}" for r in records if r.cause)[:600]
            self._write(baseline=baseline, final=None, won=None, drawn=(), eta_s=None)
            return f"No trial of {len(records)} ended with a {self.settings.metric} and a checkpoint. {causes}", False
        plain = next((record for record in records if record.trial == 0), None)
        won = ending.winner_facts(best, self.running.jobs, self.settings, plain)
        search = self.running.search
        drawn = pictures.draw(search.study, self.folders.results / ending.PICTURES, metric=self.settings.metric)
        self._write(
            baseline=baseline, final=self.evaluations.final(members, best), won=won,
            drawn=[path.relative_to(self.folders.results).as_posix() for path in drawn], eta_s=None,
        )  # fmt: skip
        self._show("done", 0.99, None, self._metrics(best))
        return f"Trial {best.trial} of {len(records)} won ({best.job_id}): {won['reason']}.", True

    def _phase(self, records: list[leaderboard.TrialRecord]) -> str:
        running = [record for record in records if record.status == "running"]
        shown = ", ".join(f"trial {r.trial} epoch {r.epochs}/{self.settings.epochs}" for r in running[:3])
        ended = len(records) - len(running)
        return f"{ended} of at most {self.settings.max_trials} trials ended" + (f"; {shown}" if shown else "")

    def _metrics(self, best: leaderboard.TrialRecord) -> dict[str, float]:
        if best.job_id is None or best.epoch is None:
            return {}
        return dict(self.store.series.epochs(best.job_id).get(best.epoch, {}))

    def _show(self, phase: str, progress: float, eta_s: float | None, metrics: dict[str, float]) -> None:
        shown = {"phase": phase, "progress": round(progress, 3), "metrics": metrics}
        if shown != self._shown:
            self._shown = shown
            self.store.update(self.job.id, self.job.attempt, eta_s=eta_s, **shown)

    def _write(self, **facts: Any) -> None:
        records = self.running.records(self.running.members())
        content = ending.report(self.job, self.settings, self.running, records, **facts)
        # Times that pass are no news: rewritten when anything else changed.
        news = {**content, "eta_s": None, "leaderboard": [{**x, "duration_s": 0} for x in content["leaderboard"]]}
        news["trials"] = [{**x, "duration_s": 0} for x in content["trials"]]
        if news != self._written:
            self._written = news
            result.write(self.folders.results, content)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mask2former-mcp study supervisor")
    parser.add_argument("--job", required=True)
    job_id = parser.parse_args(arguments).job
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    settings = Settings.load(os.environ)
    supervisor = StudySupervisor(settings, dict(os.environ))
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
