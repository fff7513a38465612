"""Jobs, as the server and the command line see them: submit, look, wait, cancel, resume, delete.

Nothing runs in here. Whatever is started is started as a detached supervisor that reads the store; killing the process
that holds this object changes nothing for any job.
"""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former_mcp.errors import InvalidRequest, NotAvailable, StoreError, WrongState
from mask2former_mcp.jobs import reconcile as reconciling
from mask2former_mcp.jobs.cancelling import ask_to_end, live_members
from mask2former_mcp.jobs.folders import new_id, stored_results_dir
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.members import live_study, members, outsiders
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.prepare import resolved_spec
from mask2former_mcp.jobs.spawn import spawn, supervised
from mask2former_mcp.jobs.store import JobStore, Told
from mask2former_mcp.jobs.views import JobViews
from mask2former_mcp.platforms import engine
from mask2former_mcp.settings import Settings
from mask2former_mcp.staging.uri import SCHEME

_POLL_S = 0.2
_ORPHAN_CHECK = 4  # polls


class Jobs(JobViews):
    """One home's jobs. Thread-safe. `environ` is what supervisors (and, by allow-list, engines) inherit."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        super().__init__(JobStore(settings.home), os.environ if environ is None else environ)
        self._checked = 0.0
        with contextlib.suppress(StoreError):  # a full disk takes no writes, but what is there can be read
            self.reconcile()

    def close(self) -> None:
        self.store.close()

    # -- starting --

    def submit(self, plan: Plan, *, study_id: str | None = None, trial: int | None = None) -> Job:
        """Store the job and start its supervisor. The same run name with the same plan answers the same job.

        `study_id` and `trial` make it a member of a study, whose supervisor alone passes them.
        NotAvailable: this action, runtime or platform cannot run here, or the engine is missing; nothing is stored.
        InvalidRequest: the run name or the results folder belongs to something else.
        """
        self._refuse_unavailable(plan)
        if plan.run_name is not None and (found := self.store.named(plan.run_name, plan)) is not None:
            return self._followed(found)
        if plan.platform == "local":  # an image brings its own
            self._refuse_without_engine()
        job_id = new_id(plan.action)
        _refuse_used_folder(plan.results_dir)
        job, is_new = self.store.insert(
            Job(
                id=job_id,
                action=plan.action,
                state=JobState.QUEUED,
                plan=plan,
                created_at=time.time(),
                results_dir=stored_results_dir(self.store.home, job_id, plan.results_dir),
                run_name=plan.run_name,
                parent_job_id=plan.parent_job_id,
                study_id=job_id if plan.study is not None else study_id,
                trial=trial,
                phase="queued",
            )
        )
        return self._start(job) if is_new else self._followed(job)

    def resume(self, job_id: str, *, num_epochs: int | None = None, study: Mapping[str, Any] | None = None) -> Job:
        """Continue an ended job as its next attempt: same id, same folder; a training from its last whole checkpoint.

        `study`: for a study, what changes of its budget (automl/resume.py checks it).
        WrongState: it has not ended, or has nothing left to do. InvalidRequest: num_epochs for another action, or not
        more than it had.
        """
        job = self.store.get(job_id)
        if not job.state.terminal:
            raise WrongState(
                f"{job.id} is {job.state}: only an ended job is resumed", fix=f"wait_for_job {job.id}, or cancel_job."
            )
        changes = {**job.changes, **(study or {})}
        if job.plan.study is not None and study is None:
            raise InvalidRequest(f"{job.id} is a study", fix="Resume it with resume_job, which knows its budget.")
        if job.plan.study is None and (
            num_epochs is not None or (job.action == "train" and job.state is JobState.SUCCEEDED)
        ):
            changes["train.num_epochs"] = self._more_epochs(job, num_epochs)
        if job.action != "train" and job.state is JobState.SUCCEEDED:
            raise WrongState(
                f"{job.id} has succeeded: there is nothing to continue, and running it again would replace its results",
                fix=f"Call {job.action} again: that is a new job in a folder of its own.",
            )
        resumed = self.store.resume(job.id, expect=job.state, attempt=job.attempt, changes=changes)
        if resumed is None:
            raise WrongState(
                f"{job.id} was changed by somebody else just now", fix=f"get_job {job.id} shows its state."
            )
        return self._start(resumed)

    def _more_epochs(self, job: Job, asked: int | None) -> int:
        if job.action != "train":
            raise InvalidRequest(f"{job.id} is a {job.action} job: it has no epochs", fix="Leave num_epochs out.")
        had = int(resolved_spec(job, self._folders(job))["train"]["num_epochs"])
        if asked is None:
            raise InvalidRequest(
                f"{job.id} has trained all of its {had} epochs", fix=f"Pass num_epochs above {had} to train on."
            )
        least = had + 1 if job.state is JobState.SUCCEEDED else had
        if asked < least:
            raise InvalidRequest(
                f"num_epochs={asked}, but {job.id} has {had}", fix=f"Pass num_epochs of {least} or more."
            )
        return asked

    def _start(self, job: Job) -> Job:
        try:
            spawn(self.settings, self.store, job, self.environ)
        except StoreError as error:
            text = f"{error.message}. {error.fix}"
            self.store.transition(
                job.id, JobState.FAILED, expect=(JobState.QUEUED,), attempt=job.attempt, text=text, message=text,
                error_code="cannot_start", phase="failed",
            )  # fmt: skip
        return self.store.get(job.id)

    # -- looking --

    def get(self, job_id: str) -> Job:
        return self._followed(self.store.get(job_id))

    def list(
        self,
        *,
        state: str | None = None,
        action: str | None = None,
        study_id: str | None = None,
        parent_job_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        unreadable: Told | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """Newest first, and the cursor of the next page. Rows that do not read are told to `unreadable`."""
        states = None if state is None else (JobState(state),)
        return self.store.list(
            states=states, action=action, study_id=study_id, parent_job_id=parent_job_id, limit=limit, cursor=cursor,
            unreadable=unreadable,
        )  # fmt: skip

    def wait(self, job_id: str, timeout_s: float) -> Job:
        """The job when it has ended, or as it is after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.store.state(job_id)
            if state is None or state[0].terminal or time.monotonic() >= deadline:
                return self.get(job_id)
            self._look_after_orphans()
            time.sleep(min(_POLL_S, max(deadline - time.monotonic(), 0.0)))

    # -- ending --

    def cancel(self, job_id: str) -> Job:
        """Ask for the end: a queued job ends at once, another one when its processes are gone. Checkpoints stay.

        Of a study that has ended without stopping its trials (a lost one) the trials are asked.
        """
        for job in self.cancellable(job_id):
            ask_to_end(self.store, job.id)
            self._followed(self.store.get(job.id))
        return self._followed(self.store.get(job_id))

    def cancellable(self, job_id: str) -> Sequence[Job]:
        """What `cancel` would end: the job, and of a study that nobody follows what still runs; nothing once all ended.

        The supervisor of a study that runs ends its trials itself.
        """
        job = self.store.get(job_id)
        unfollowed = live_members(self.store, job) if job.state.terminal or job.state is JobState.QUEUED else ()
        return unfollowed if job.state.terminal else [job, *unfollowed]

    def delete(self, job_id: str) -> Job:
        """Remove an ended job and its folder; a results folder that the user chose elsewhere stays. Answers what was.

        WrongState: it has not ended, or other jobs depend on it. One that has succeeded does so no more.
        """
        job, inside = self.deletable(job_id)
        for member in inside:  # newest first: an evaluation before the trial that it evaluated
            self.delete(member.id)
        if not self.store.remove(job.id):
            self.deletable(job.id)  # says what came in between
            raise WrongState(f"{job.id} was changed by somebody else just now", fix=f"get_job {job.id} shows it.")
        reconciling.discard(self.store.home, self._folders(job).job)
        return job

    def deletable(self, job_id: str) -> tuple[Job, Sequence[Job]]:
        """The job and the members of its study, which go with it. WrongState as `delete`: asked before a user is."""
        job = self.store.get(job_id)
        if not job.state.terminal:
            raise WrongState(f"{job.id} is {job.state}: it cannot be deleted", fix=f"cancel_job {job.id} first.")
        if study := live_study(self.store, job):
            raise WrongState(
                f"{job.id} belongs to study {study.id}, which is {study.state} and reads its results",
                fix=f"cancel_job {study.id} first, or wait_for_job {study.id}. Deleting the study deletes its trials.",
            )
        if running := live_members(self.store, job):
            raise WrongState(
                f"{job.id} is {job.state}, but {len(running)} of its jobs still run ({running[0].id})",
                fix=f"cancel_job {job.id} stops them.",
            )
        inside = members(self.store, job.id) if job.plan.study is not None else []
        if dependents := outsiders(self.store, job.id, inside):
            names = ", ".join(dependents)
            raise WrongState(
                f"{job.id} cannot be deleted: {names} still need{'s' if len(dependents) == 1 else ''} its files, to run"
                " or to be resumed",
                fix=f"wait_for_job or delete_job {names} first.",
                details={"job_ids": list(dependents)},
            )
        return job, inside

    def reconcile(self) -> Sequence[str]:
        """Take care of jobs whose supervisor died. Called at the start, and now and then while somebody looks."""
        return reconciling.reconcile(self.settings, self.store, self.environ)

    # -- inside --

    def _refuse_unavailable(self, plan: Plan) -> None:
        """NotAvailable with what is missing, for what can be planned but not run."""
        if plan.platform not in ("local", "docker"):
            raise NotAvailable(f"platform {plan.platform!r} is not built yet", fix="Use platform='local'.")
        if plan.runtime == "tao" and plan.platform == "local" and not self.settings.engine_command:
            raise NotAvailable(
                "runtime=tao runs in NVIDIA's container, and platform=local starts no containers",
                fix="Use platform='docker', or runtime='engine'.",
            )

    def _refuse_without_engine(self) -> None:
        """NotAvailable: the job would fail at its first import; better said before it is stored."""
        if lacks := engine.missing(self.settings, self.environ):
            raise NotAvailable(
                f"nothing can run yet: {', '.join(lacks)} missing for {' '.join(self.settings.engine)}",
                fix=f"{engine.how_to_install(self.settings.python)} doctor checks it.",
            )

    def _followed(self, job: Job) -> Job:
        """The job, with a supervisor if it needs one."""
        if not job.state.terminal and not supervised(self.store, job):
            self.reconcile()
            return self.store.get(job.id)
        return job

    def _look_after_orphans(self) -> None:
        if time.monotonic() - self._checked > _ORPHAN_CHECK * self.settings.poll_s:
            self._checked = time.monotonic()
            self.reconcile()


def _refuse_used_folder(chosen: str | None) -> None:
    if chosen is None or chosen.startswith(SCHEME):  # of S3, the job's preparing asks
        return
    path = Path(chosen).expanduser()
    try:
        used = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise InvalidRequest(f"results_dir {chosen} cannot be read: {error}", fix="Name another folder.") from error
    if used:
        raise InvalidRequest(
            f"results_dir {chosen} is not a new or empty folder", fix="Name a new folder, or leave results_dir out."
        )
