"""One trial as the leaderboard knows it: Optuna's row and the job's row, read together."""

from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.leaderboard import Status, TrialRecord
from mask2former_mcp.jobs.checkpoints import saved
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.service import Jobs

_PRUNED_BY_RIVALS = "rung"

# The note `halted` of a trial that stopped with its study, not for its own sake: it is open, and goes on when the study
# does. The note is the reason; empty when the trial goes on. An only trial is its study: whatever stops it is noted so.
OUT_OF_TIME = "the study's time budget ended before its last epoch"
WITH_STUDY = "cancelled with the study, before its last epoch"


def is_halted(notes: Mapping[str, Any], job: Job | None) -> bool:
    """Whether an open trial rests until its study goes on."""
    return bool(notes.get("halted")) and (job is None or job.state.terminal)


def record(trial: FrozenTrial, job: Job | None, jobs: Jobs, settings: StudySettings) -> TrialRecord:
    notes: dict[str, Any] = trial.user_attrs
    status, cause = _status(trial), notes.get("cause", "")
    broke = job is not None and job.state in (JobState.FAILED, JobState.LOST)
    if status == "running" and is_halted(notes, job):
        status, cause = "failed" if broke else "stopped", notes["halted"]
    counts = status != "failed" or (broke and settings.max_trials == 1)  # a broken plain run's checkpoints are usable
    best: tuple[float, int] | None = None
    has_checkpoint = False
    if job is not None:
        measured = {
            epoch: values[settings.metric]
            for epoch, values in jobs.store.series.epochs(job.id).items()
            if settings.metric in values
        }
        kept = {checkpoint.epoch for checkpoint in saved(jobs.results_dir(job.id) / "train")}
        able = {epoch: value for epoch, value in measured.items() if epoch in kept}
        has_checkpoint = bool(able)
        best = max(((value, epoch) for epoch, value in (able or measured).items()), default=None)
    return TrialRecord(
        trial=trial.number,
        status=status,
        job_id=job.id if job else None,
        parameters=notes.get("values", {}),
        metric=trial.value if status == "finished" else best[0] if best else None,
        epoch=notes.get("epoch", best[1] if best else None) if counts else None,
        epochs=trial.last_step or 0,
        duration_s=jobs.store.history.seconds(job.id) if job else None,
        checkpoint=counts and has_checkpoint,
        cause=cause,
        adjustments=tuple(notes.get("adjustments", ())),
    )


def _status(trial: FrozenTrial) -> Status:
    match trial.state:
        case TrialState.COMPLETE:
            return "finished"
        case TrialState.PRUNED:
            return "pruned" if trial.user_attrs.get("stop") == _PRUNED_BY_RIVALS else "stopped"
        case TrialState.FAIL:
            return "failed"
        case _:
            return "running"
