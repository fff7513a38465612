"""The process that follows one job: `python -m mask2former_mcp.jobs.supervisor --job ID` (home and settings: M2F_*).

It looks at the state in the store and does the next step, again and again, until the job has ended. So a new supervisor
needs no other knowledge than an old one: whatever state it finds, the step for that state is the right one. What an
earlier supervisor had begun is found by the platform's fence (one start per attempt) and by the handle in the store.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from mask2former_mcp.errors import Mask2FormerError, PlatformAway
from mask2former_mcp.jobs import artifacts, following
from mask2former_mcp.jobs.cached import cache_bound
from mask2former_mcp.jobs.checkpoints import newest_intact
from mask2former_mcp.jobs.contained import as_outside
from mask2former_mcp.jobs.delivering import Delivering
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.gathering import gather
from mask2former_mcp.jobs.job import LIVE, MAX_PHASE, Job, JobState
from mask2former_mcp.jobs.keys import hidden, job_keys
from mask2former_mcp.jobs.logs import last_lines, of_attempt
from mask2former_mcp.jobs.prepare import action_folder, checkpoint_folder, prepare, resolved_spec
from mask2former_mcp.jobs.retrying import not_prepared, try_again
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.jobs.turn import Turn
from mask2former_mcp.jobs.verdict import Verdict, judge
from mask2former_mcp.platforms.locks import ProcessLock
from mask2former_mcp.platforms.process import identify
from mask2former_mcp.platforms.protocol import Handle, Observation, Platform, Report, Task
from mask2former_mcp.platforms.registry import platform_for
from mask2former_mcp.settings import Settings

_LOCK_PATIENCE_S = 15.0  # another supervisor may be on its way out
_LOG_TAIL = 4000  # lines: eight ranks that wait in vain bury the one that failed
_LOOK_EVERY_S = 1.0  # whether a job that is prepared shall still run

_log = logging.getLogger("mask2former_mcp.supervisor")


class Stopped(Exception):
    """Somebody asked for the end while the job was prepared."""


class Supervisor:
    """Steps of one job. Every write names the attempt, so that a supervisor that was overtaken changes nothing."""

    def __init__(self, settings: Settings, store: JobStore, platform: Platform, environ: Mapping[str, str]) -> None:
        self.settings = settings
        self.store = store
        self.platform = platform
        self.environ = environ
        self.turn = Turn(settings, store, environ)
        self.delivering = Delivering(settings, store, environ)

    def run(self, job_id: str) -> None:
        while not (job := self.store.get(job_id)).state.terminal:
            try:
                self._step(job)
            except PlatformAway as error:
                # Before the platform is back nothing can be ended, nor told of its end: the step is done again.
                self.store.update(job.id, job.attempt, phase=error.message[:MAX_PHASE])
                time.sleep(self.settings.poll_s)

    def _step(self, job: Job) -> None:
        match job.state:
            case JobState.QUEUED:
                if (hopeless := self.turn.wait(job)) is not None:
                    self._end(job, hopeless, None)
            case JobState.PREPARING:
                self.start(job)
            case JobState.RUNNING:
                self.follow(job)
            case JobState.STOPPING:
                self.stop(job)

    # -- preparing --

    def start(self, job: Job) -> None:
        """Prepare and start. Called again after a crash in between, it answers the process that runs already."""
        if job.handle is not None:
            seen = self.platform.poll(job.handle)
            if seen.is_away:
                raise PlatformAway(seen.detail, fix="It goes on by itself.")  # whether it was started is not known yet
            if seen.state in ("running", "exited"):
                self._running(job, job.handle, "found running")
                return
        handle = job.handle
        try:
            self.delivering.claim(job)
            report = self._reporter(job)
            task, notes = self._prepared(job, report)
            # The handle is stored before the start: killed in between, a successor still finds what was started.
            handle = self.platform.render(task)["handle"]
            if not self.store.update(job.id, job.attempt, handle=handle, phase="starting"):
                return
            if self.store.state(job.id) != (JobState.PREPARING, job.attempt):
                return
            handle = self.platform.submit(task, report)
        except Stopped:
            return
        except PlatformAway:
            raise  # it may have been created or started meanwhile: ended now, it would be left behind
        except Mask2FormerError as error:
            self._not_started(job, handle, not_prepared(error))
        except OSError as error:
            self._not_started(job, handle, Verdict(JobState.FAILED, f"Preparing failed: {error}.", "preparing_failed"))
        else:
            self._running(job, handle, "; ".join(("started", *notes)))

    def _not_started(self, job: Job, handle: Handle | None, verdict: Verdict) -> None:
        """A start that failed half-way may have left something behind."""
        self._clear(replace(job, handle=handle), grace_s=1.0)
        self._end_or_retry(job, verdict, None)

    def _reporter(self, job: Job) -> Report:
        """What is being done becomes the job's phase. It raises Stopped when the job is to end."""
        shown, looked = "", time.monotonic()

        def report(what: str, done: float) -> None:
            nonlocal shown, looked
            phase = f"{what} ({done:.0%})" if done else what
            if phase == shown and time.monotonic() - looked < _LOOK_EVERY_S:
                return
            looked = time.monotonic()
            if self.store.state(job.id) != (JobState.PREPARING, job.attempt):
                raise Stopped
            if phase != shown:
                shown = phase
                self.store.update(job.id, job.attempt, phase=phase)

        return report

    def _prepared(self, job: Job, report: Report) -> tuple[Task, tuple[str, ...]]:
        """The task, and what was decided on the way; the attempt's record stands."""
        prepared = prepare(
            job,
            Folders.of(self.store.home, job),
            devices=self.turn.leases.held(job.id),
            cpu_share=self.turn.cpu_slots(job),
            environ=self.environ,
            report=report,
            bound=cache_bound(self.settings, self.store),
        )
        self.store.history.begin(
            job.id,
            job.attempt,
            resumed_from=prepared.resumed_from,
            resume_epoch=prepared.resume_epoch,
            status_offset=prepared.status_offset,
        )
        return prepared.task, prepared.notes

    def _running(self, job: Job, handle: Handle, text: str) -> None:
        """Asked to stop in this moment, the transition fails, and the next step ends what was started."""
        self.store.transition(
            job.id,
            JobState.RUNNING,
            expect=(JobState.PREPARING,),
            attempt=job.attempt,
            text=text,
            handle=handle,
            phase="starting",
            message="" if job.attempt == 1 else f"Attempt {job.attempt}: {text}.",
        )

    # -- running --

    def follow(self, job: Job) -> None:
        """Read the status until the process has ended, or the job is not running any more."""
        follower = following.Follower(self.store, job, self._keys(job))
        assert job.handle is not None  # stored before the job could be running
        got_on = False
        self.delivering.start(job)
        while self.store.state(job.id) == (JobState.RUNNING, job.attempt):
            seen = self.platform.poll(job.handle)
            over = seen.state in ("exited", "missing")
            follower.look(final=over, waiting="" if over else seen.detail[:MAX_PHASE])
            if seen.state == "exited":
                self._clear(job, grace_s=1.0)
                self._conclude(job, follower, seen, stopping=False)
                return
            if seen.state == "missing":
                self._lost(job, seen)
                return
            if not got_on:
                # Not before the first look, nor at the end: a job that kills its supervisors there ends as lost.
                got_on = self.store.update(job.id, job.attempt, spawns=0)
            time.sleep(self.settings.poll_s)

    def _lost(self, job: Job, seen: Observation) -> None:
        """Nobody knows how it ended: begin the next attempt, as often as the settings allow."""
        self._clear(job, grace_s=self.settings.cancel_grace_s)
        self.store.history.end(job.id, job.attempt, JobState.LOST, None)
        reason = f"attempt {job.attempt}: {seen.detail}"
        if job.restarts < self.settings.max_restarts:
            self.store.retry(job.id, attempt=job.attempt, restarts=job.restarts + 1, reason=reason)
            return
        text = f"{reason}, after {job.restarts} automatic restarts. resume_job goes on from the last checkpoint."
        self._end(job, Verdict(JobState.LOST, text[0].upper() + text[1:], "lost"), None)

    # -- stopping --

    def stop(self, job: Job) -> None:
        follower = following.Follower(self.store, job, self._keys(job))
        grace = self.settings.cancel_grace_s
        self.store.update(job.id, job.attempt, phase=f"stopping: up to {grace:.0f} s to write a checkpoint", eta_s=None)
        self._clear(job, grace_s=grace)
        seen = self.platform.poll(job.handle) if job.handle else Observation("missing")
        follower.look(final=True)
        self._conclude(job, follower, seen, stopping=True)

    def _clear(self, job: Job, *, grace_s: float) -> None:
        """Nothing of this attempt may run when its devices are given back; then what it made is the job's."""
        if job.handle is not None:
            self.platform.cancel(job.handle, grace_s=grace_s)
        gather(job, Folders.of(self.store.home, job), job.attempt)

    # -- the end --

    def _conclude(self, job: Job, follower: following.Follower, seen: Observation, *, stopping: bool) -> None:
        folders = Folders.of(self.store.home, job)
        if seen.exit_code is None:  # only reached while stopping
            verdict = judge(-9, follower.run, (), (), stopping=True)
            self._end(job, replace(verdict, message=self._cancelled(job, folders)), None)
            return
        missing: tuple[str, ...] = ()
        if seen.exit_code == 0:
            began = self.store.history.attempt(job.id, job.attempt)
            # A later attempt of anything but a training must write its files anew; a training may have been complete.
            newer = began.started_at if began and job.attempt > 1 and job.action != "train" else None
            missing = tuple(artifacts.missing(folders.results, self._patterns(job, folders), newer_than=newer))
        tail = of_attempt(last_lines(folders.log, _LOG_TAIL), job.attempt)
        follower.read_log(tail)
        verdict = judge(
            seen.exit_code, follower.run, missing, tail, stopping=stopping, out_of_memory=seen.out_of_memory
        )
        message = as_outside(verdict.message, folders, job.attempt)
        if verdict.state is JobState.SUCCEEDED:
            message = following.success_message(self.store, job, follower.run)
        elif verdict.state is JobState.CANCELLED:
            message = self._cancelled(job, folders)
        verdict = replace(verdict, message=message)
        if verdict.state is JobState.FAILED and seen.cut_off:
            self._lost(job, seen)
        else:
            self._end_or_retry(job, verdict, seen.exit_code)

    def _cancelled(self, job: Job, folders: Folders) -> str:
        """What resume_job will do."""
        if job.action != "train":
            return "Cancelled. resume_job runs it again from the beginning."
        kept = newest_intact(checkpoint_folder(job, resolved_spec(job, folders), folders))
        if kept is None:
            return "Cancelled before its first checkpoint: resume_job starts from the beginning."
        return f"Cancelled. resume_job goes on from {kept.path.name}."

    def _end_or_retry(self, job: Job, verdict: Verdict, exit_code: int | None) -> None:
        verdict = replace(verdict, message=self._masked(job, verdict.message))
        most = self.settings.max_restarts
        if not verdict.is_retried:
            self._end(job, verdict, exit_code)
        elif end := try_again(self.store, job, verdict, max_restarts=most, exit_code=exit_code):
            self._end(job, end, exit_code)

    def _patterns(self, job: Job, folders: Folders) -> list[str]:
        own = action_folder(job, resolved_spec(job, folders), folders)
        default = f"{job.action}/"
        return [
            str(own / pattern.removeprefix(default))
            if pattern.startswith(default) and own.name != job.action
            else pattern
            for pattern in job.plan.artifacts
        ]

    def _end(self, job: Job, verdict: Verdict, exit_code: int | None) -> None:
        message = self._masked(job, verdict.message)
        self.store.history.end(job.id, job.attempt, verdict.state, exit_code)
        # Before the end is recorded: a supervisor that is killed meanwhile has a successor that goes on.
        state, message, code = self.delivering.finish(job, verdict.state, message, verdict.error_code)
        self.store.transition(
            job.id,
            state,
            expect=LIVE,
            attempt=job.attempt,
            text=message,
            message=message,
            error_code=code,
            phase=following.PHASES[state],
            **({"progress": 1.0} if state is JobState.SUCCEEDED else {}),
        )

    def _keys(self, job: Job) -> tuple[str, ...]:
        return job_keys(job, Folders.of(self.store.home, job), self.environ)

    def _masked(self, job: Job, text: str) -> str:
        return hidden(text, self._keys(job))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mask2former-mcp supervisor")
    parser.add_argument("--job", required=True)
    job_id = parser.parse_args(arguments).job
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    settings = Settings.load(os.environ)
    store = JobStore(settings.home)
    job = store.get(job_id)
    with ProcessLock(Folders.of(store.home, job).lock) as lock:
        if not lock.acquire(_LOCK_PATIENCE_S):
            _log.info("%s has a supervisor", job_id)
            return 0
        store.note_supervisor(job_id, dict(identify(os.getpid()) or {}), spawned=False)
        _log.info("%s: attempt %d, %s", job_id, job.attempt, job.state)
        keys = job_keys(job, Folders.of(store.home, job), os.environ)
        platform = platform_for(job.plan.platform, settings, keys)
        Supervisor(settings, store, platform, dict(os.environ)).run(job_id)
        _log.info("%s: %s", job_id, store.get(job_id).state)
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
