"""What can be read of a job: its log, metrics, files, spec, history, and what planning needs to know of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mask2former_mcp.jobs.artifacts import find_artifacts
from mask2former_mcp.jobs.checkpoints import saved
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.history import Attempt, Event
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.keys import hidden, job_keys, masked
from mask2former_mcp.jobs.logs import MAX_READ, LogPage, read_page
from mask2former_mcp.jobs.members import members, shown_trial, winner_id
from mask2former_mcp.jobs.prepare import resolved_spec
from mask2former_mcp.jobs.series import best_epoch, thin
from mask2former_mcp.jobs.status import step_seconds
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.lineage import Earlier, Parent


class JobViews:
    """Reads only. `environ` may hold an encryption key: it is masked in every answer, as those that jobs were given."""

    def __init__(self, store: JobStore, environ: Mapping[str, str] | None = None) -> None:
        self.store = store
        self.environ = dict(environ or {})

    def events(self, job_id: str) -> Sequence[Event]:
        return self.store.history.events(self.store.get(job_id).id)

    def attempts(self, job_id: str) -> Sequence[Attempt]:
        return self.store.history.attempts(self.store.get(job_id).id)

    def logs(
        self, job_id: str, *, tail: int = 50, grep: str | None = None, cursor: str | None = None, budget: int = MAX_READ
    ) -> LogPage:
        """Lines of the job's log; the encryption key is masked, should the engine have printed it.

        Of a study, its trial's that won or leads; before one has measured anything, of what it started last. At the
        next call that may be another job, so a study's cursor names it: what was another's begins at the start.
        """
        asked = self.store.get(job_id)
        job = self._heard(asked)
        is_study = asked.plan.study is not None
        if is_study and cursor is not None:
            whose, _, cursor = cursor.rpartition(":")
            cursor = cursor if whose in ("", job.id) else "0"
        folders = self._folders(job)
        page = read_page(folders.log, tail=tail, grep=grep, cursor=cursor, budget=budget)
        keys = job_keys(job, folders, self.environ)
        return replace(
            page,
            lines=tuple(hidden(line, keys) for line in page.lines),
            next_cursor=f"{job.id}:{page.next_cursor}" if is_study else page.next_cursor,
            job_id=job.id,
        )

    def why_empty(self, job_id: str) -> str:
        """Why a job has no line of log."""
        job = self.store.get(job_id)
        if JobState.RUNNING in {event.to_state for event in self.store.history.events(job.id)}:
            return f"The log is empty: the engine wrote nothing{'' if job.state.terminal else ' yet'}."
        if job.state.terminal:
            return f"There is no log: the engine was never started. {job.message}".strip()
        return f"There is no log yet: {job.id} is {job.state} ({job.phase})."

    def _heard(self, job: Job) -> Job:
        """Whose log is read."""
        if job.plan.study is None:
            return job
        shown = shown_trial(self.store, job, self._folders(job).results)
        return self.store.get(shown) if shown else next(iter(members(self.store, job.id)), job)

    def metrics(self, job_id: str, *, max_points: int = 50) -> dict[str, list[list[float]]]:
        """Name -> [[epoch, value], ...], each with its own epochs, thinned to `max_points` (the best epoch stays).

        Of a study, the winner's, or of the trial that leads; nothing before there is one of several.
        """
        job = self.store.get(job_id)
        if job.plan.study is not None:
            shown = shown_trial(self.store, job, self._folders(job).results)
            return self.metrics(shown, max_points=max_points) if shown else {}
        epochs = self.store.series.epochs(job.id)
        result: dict[str, list[list[float]]] = {}
        for name in sorted({name for values in epochs.values() for name in values}):
            measured = {epoch: values for epoch, values in epochs.items() if name in values}
            kept = thin(measured, max_points, best_epoch(measured, name))
            result[name] = [[point["epoch"], point[name]] for point in kept]
        return result

    def artifacts(self, job_id: str) -> list[dict[str, Any]]:
        """Files of the results folder: path, file, size, kind; checkpoints with epoch, step and whether the best."""
        job = self.store.get(job_id)
        results = self._folders(job).results
        kept = {checkpoint.epoch for checkpoint in saved(results / "train")}
        epochs = {epoch: values for epoch, values in self.store.series.epochs(job.id).items() if epoch in kept}
        return [found.as_dict() for found in find_artifacts(results, best_epoch=best_epoch(epochs, job.plan.metric))]

    def spec(self, job_id: str) -> dict[str, Any]:
        """The spec that the job runs with, real paths in it, the key masked."""
        job = self.store.get(job_id)
        return masked(resolved_spec(job, self._folders(job)))

    def results_dir(self, job_id: str) -> Path:
        return self._folders(self.store.get(job_id)).results

    # -- for planning --

    def parent(self, job_id: str) -> Parent:
        """The job as another job's parent; of a study, the winner."""
        job = self.store.get(job_id)
        if job.plan.study is not None:
            won = self.parent(winner_id(job, self._folders(job).results))
            return replace(won, state=job.state.value)
        spec = dict(job.plan.spec)
        for dotted, value in job.changes.items():
            section, _, key = dotted.partition(".")
            spec[section] = {**spec.get(section, {}), key: value}
        return Parent(
            job_id=job.id,
            action=job.action,
            spec=spec,
            results_dir=self._folders(job).results,
            epoch_metrics=self.store.series.epochs(job.id),
            state=job.state.value,
            datasets=job.plan.datasets,
            runtime=job.plan.runtime,
            parent_job_id=job.parent_job_id,
            metric=job.plan.metric,
        )

    def earlier(self, action: str) -> Sequence[Earlier]:
        """What finished jobs of this action took, newest first: the measure for estimates."""
        jobs, _ = self.store.list(states=(JobState.SUCCEEDED,), action=action, limit=20)
        found = []
        for job in jobs:
            attempts = self.store.history.attempts(job.id)
            steps = _last_step(self._folders(job), job)
            if len(attempts) == 1 and attempts[0].finished_at is not None and steps:
                seconds = attempts[0].finished_at - attempts[0].started_at
                step_s = step_seconds(self._folders(job).results / job.action / "status.json")
                found.append(Earlier(job_id=job.id, spec=job.plan.spec, steps=steps, seconds=seconds, step_s=step_s))
        return found

    def _folders(self, job: Job) -> Folders:
        return Folders.of(self.store.home, job)


def _last_step(folders: Folders, job: Job) -> int | None:
    if job.action != "train":
        return None
    found = saved(folders.results / job.action)
    if not found:
        return None
    # It trained all of its epochs, also where the last checkpoints were not kept.
    return round(found[-1].step * int(job.plan.spec["train"]["num_epochs"]) / (found[-1].epoch + 1))
