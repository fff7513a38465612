"""Before the first trial and after the last: the baseline, the final evaluation, the report in study.json."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from mask2former_mcp import lineage
from mask2former_mcp.automl import budget, leaderboard, pictures, result, trials
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.leaderboard import TrialRecord
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.errors import Mask2FormerError
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.prepare import resolved_spec
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.planning.planner import Planner

PICTURES = "pictures"
UNAVAILABLE = "unavailable"


class Evaluations:
    """The evaluate jobs of a study. Each is submitted once, by its name; asked again, it answers how far it is."""

    def __init__(self, study: Job, settings: StudySettings, jobs: Jobs, planner: Planner) -> None:
        self.study, self.settings, self.jobs, self.planner = study, settings, jobs, planner
        self._refused: dict[str, str] = {}

    def baseline(self, members: Mapping[str, Job]) -> dict[str, Any]:
        """What the starting weights are worth before any training, or why nobody can say."""
        checkpoint, reason = trials.start_weights(self.study.plan)
        if checkpoint is None:
            return {"status": UNAVAILABLE, "reason": reason}
        name = trials.baseline_name(self.study.id)
        path = checkpoint.replace("{home}", str(self.jobs.store.home))
        return self._evaluated(members.get(name), name, parent=None, checkpoint=path)

    def final(self, members: Mapping[str, Job], winner: TrialRecord) -> dict[str, Any]:
        """The winner's best checkpoint on the validation data."""
        name = trials.final_name(self.study.id, winner.trial)
        return self._evaluated(members.get(name), name, parent=winner.job_id, checkpoint=f"epoch={winner.epoch}")

    def _evaluated(self, job: Job | None, name: str, *, parent: str | None, checkpoint: str) -> dict[str, Any]:
        if name in self._refused:
            return {"status": UNAVAILABLE, "reason": self._refused[name]}
        try:
            if job is not None and self._is_of_before(job):
                job = self.jobs.resume(job.id)
            if job is None:
                plan: Plan = trials.evaluate_plan(
                    self.study, self.planner, name=name, parent_job_id=parent, checkpoint=checkpoint
                )
                job = self.jobs.submit(plan, study_id=self.study.id)
        except Mask2FormerError as error:
            self._refused[name] = trials.why(error)
            return {"status": UNAVAILABLE, "reason": self._refused[name]}
        facts: dict[str, Any] = {"status": job.state.value, "job_id": job.id, "metrics": dict(job.metrics)}
        if job.state.terminal and job.state is not JobState.SUCCEEDED:
            facts["reason"] = job.message
        return facts

    def _is_of_before(self, job: Job) -> bool:
        """Whether it came to nothing in an earlier attempt of the study: cancelled with it, mostly."""
        ended_badly = job.state.terminal and job.state is not JobState.SUCCEEDED
        return ended_badly and (job.finished_at or 0.0) < (self.study.started_at or 0.0)


def is_over(evaluation: Mapping[str, Any]) -> bool:
    status = evaluation["status"]
    return status == UNAVAILABLE or JobState(status).terminal


def winner_facts(found: TrialRecord, jobs: Jobs, settings: StudySettings, plain: TrialRecord | None) -> dict[str, Any]:
    """The winner with its reasons: job, checkpoint, sha256, epoch, and the spec that made it."""
    assert found.job_id is not None  # a trial wins with a metric and a checkpoint, and these come from a job
    assert found.metric is not None
    job = jobs.store.get(found.job_id)
    folders = Folders.of(jobs.store.home, job)
    chosen = lineage.checkpoint(jobs.parent(job.id), f"epoch={found.epoch}", metric=settings.metric)
    reason = f"best {settings.metric} {found.metric:.4f}, at epoch {found.epoch} (counted from 0)"
    if found.trial == 0:
        reason += "; it is trial 0, the plain run: the search found nothing better"
    elif plain is not None and plain.metric is not None:
        reason += f"; the plain run (trial 0) reached {plain.metric:.4f}"
    if found.status != "finished":
        reason += f"; {found.cause}, and no trial ran to its end"
    return {
        "trial": found.trial,
        "job_id": found.job_id,
        "metric": found.metric,
        "epoch": found.epoch,
        "checkpoint": result.portable(chosen.path, jobs.store.home),
        "sha256": chosen.sha256,
        "parameters": found.parameters,
        "reason": reason,
        "spec": trials.handed_over(resolved_spec(job, folders)),
    }


def report(
    study: Job, settings: StudySettings, running: RunningStudy, records: Sequence[TrialRecord], *,
    baseline: Mapping[str, Any], final: Mapping[str, Any] | None, won: Mapping[str, Any] | None,
    drawn: Sequence[str], eta_s: float | None,
) -> dict[str, Any]:  # fmt: skip
    """The content of study.json."""
    failures = [{"trial": r.trial, "job_id": r.job_id, "cause": r.cause} for r in records if r.status == "failed"]
    ended = [record for record in records if record.status != "running"]
    return {
        "study_id": study.id,
        "algorithm": settings.algorithm,
        "metric": settings.metric,
        "direction": "maximize",
        "search_space": settings.space.summary(),
        "leaderboard": leaderboard.compact(records),
        "winner": won,
        "baseline": dict(baseline),
        "final": None if final is None else dict(final),
        "budget": {
            "max_trials": settings.max_trials,
            "trials_started": len(records),
            "trials_ended": len(ended),
            "max_epochs": settings.epochs,
            "epochs_trained": running.epochs_trained(),
            "epochs_at_most": budget.at_most_epochs(settings),
            "max_concurrent": settings.max_concurrent,
            "time_budget_s": settings.time_budget_s,
        },
        "eta_s": None if eta_s is None else round(eta_s, 1),
        "duration_s": _duration(study, running.jobs),
        "failures": failures,
        "adjustments": [*settings.adjustments, *(f"trial {r.trial}: {a}" for r in records for a in r.adjustments)],
        "importances": pictures.importances(running.search.study) if won is not None else {},
        "pictures": list(drawn),
        "trials": [
            {**record.line(), "parameters": record.parameters, "epochs": record.epochs, "cause": record.cause}
            for record in sorted(records, key=lambda record: record.trial)
        ],
    }


def _duration(study: Job, jobs: Jobs) -> float:
    """Seconds of all attempts of the study so far, without the time between them."""
    attempts = jobs.store.history.attempts(study.id)
    now = time.time()
    return round(sum((a.finished_at or now) - a.started_at for a in attempts), 1)
