"""A study of one trial: study and trial are one job, the plain run. Its result is read from the stores when asked for,
with the same keys as study.json; nothing follows such a job but a job's supervisor, so nothing writes the file.
"""

from typing import Any

from mask2former_mcp.automl import report, trials
from mask2former_mcp.automl.budget import REDUCTION, StudySettings
from mask2former_mcp.automl.leaderboard import Status, TrialRecord, winner
from mask2former_mcp.automl.report import Outcome, unavailable
from mask2former_mcp.automl.space import Space
from mask2former_mcp.jobs.checkpoints import saved
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.views import JobViews

_STATUS: dict[JobState, Status] = {
    JobState.SUCCEEDED: "finished",
    JobState.CANCELLED: "stopped",
    JobState.FAILED: "failed",
    JobState.LOST: "failed",
}
_NOT_MADE = "a study of one trial is the training alone; evaluate with the same checkpoint measures what it began with"
_VALIDATED = "validation of this epoch while it trained: the same weights, images and code as an evaluate job's"
_OF_TAO = "TAO validated it on this data while it trained; evaluate with parent_job_id measures it by itself"


def outcome(job: Job, jobs: JobViews) -> dict[str, Any]:
    """The study as it stands."""
    train = jobs.parent(job.id).spec.get("train") or {}
    epochs = int(train.get("num_epochs") or 0)
    settings = StudySettings(
        algorithm="none", metric=job.plan.metric, max_trials=1, max_concurrent=1, epochs=epochs, first_rung=epochs,
        reduction_factor=REDUCTION, seed=int(train.get("seed", 0)), space=Space(),
    )  # fmt: skip
    trial = _record(job, jobs)
    best = winner([trial])
    won = None if best is None else report.winner_facts(best, jobs, settings, None)
    baseline = unavailable(trials.start_weights(job.plan)[1] or _NOT_MADE)
    final = None if best is None else _final(job, best, jobs)
    found = Outcome(baseline=baseline, final=final, winner=won, eta_s=job.eta_s)
    return report.compose(job.id, settings, [trial], found, jobs.store.history.seconds(job.id))


def _final(job: Job, best: TrialRecord, jobs: JobViews) -> dict[str, Any]:
    assert best.epoch is not None  # it has a checkpoint
    if job.plan.runtime == "tao":
        return unavailable(_OF_TAO)
    metrics = dict(jobs.store.series.epochs(job.id)[best.epoch])
    return {"status": JobState.SUCCEEDED.value, "job_id": job.id, "metrics": metrics, "source": _VALIDATED}


def _record(job: Job, jobs: JobViews) -> TrialRecord:
    """The job as a trial: as in a larger study its value is the best epoch's among those that kept a checkpoint."""
    metric = job.plan.metric
    epochs = jobs.store.series.epochs(job.id)
    measured = {epoch: values[metric] for epoch, values in epochs.items() if metric in values}
    kept = {checkpoint.epoch for checkpoint in saved(jobs.results_dir(job.id) / "train")}
    able = {epoch: value for epoch, value in measured.items() if epoch in kept}
    best = max(((value, epoch) for epoch, value in (able or measured).items()), default=None)
    status: Status = _STATUS.get(job.state, "running")
    cause = f"{job.state}: {job.message}"[:500] if status in ("failed", "stopped") else ""
    if status == "finished" and not able:
        status, cause = "failed", f"it ended without any {metric} of an epoch that kept a checkpoint"
    return TrialRecord(
        trial=0,
        status=status,
        job_id=job.id,
        metric=best[0] if best else None,
        epoch=best[1] if best and status != "failed" else None,
        epochs=max(epochs, default=-1) + 1,
        duration_s=jobs.store.history.seconds(job.id),
        checkpoint=bool(able),
        cause=cause,
    )
