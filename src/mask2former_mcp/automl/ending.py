"""Before the first trial and after the last: the evaluate jobs of the starting weights and of the winner.

A study of one trial from scratch has neither. Nothing was chosen among rivals, there is no score from before to set it
against, and while it trained the engine measured the very checkpoint on the images and with the scores of an evaluate
job, which would only repeat the numbers. TAO validates with other code than it evaluates with, so there the job is run.
"""

from collections.abc import Mapping
from typing import Any

from mask2former_mcp.automl import trials
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.leaderboard import TrialRecord
from mask2former_mcp.automl.report import UNAVAILABLE, unavailable
from mask2former_mcp.errors import Mask2FormerError
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.planning.planner import Planner

_VALIDATED = "validation of this epoch while it trained: the same weights, images and scores as an evaluate job's"


class Evaluations:
    """The evaluate jobs of a study. Each is submitted once, by its name; asked again, it answers how far it is."""

    def __init__(self, study: Job, settings: StudySettings, jobs: Jobs, planner: Planner) -> None:
        self.study, self.settings, self.jobs, self.planner = study, settings, jobs, planner
        self._refused: dict[str, str] = {}

    def baseline(self, members: Mapping[str, Job]) -> dict[str, Any]:
        """What the starting weights are worth before any training, or why nobody can say."""
        checkpoint, reason = trials.start_weights(self.study.plan)
        if checkpoint is None:
            return unavailable(reason)
        name = trials.baseline_name(self.study.id)
        path = checkpoint.replace("{home}", str(self.jobs.store.home))
        return self._evaluated(members.get(name), name, parent=None, checkpoint=path)

    def final(self, members: Mapping[str, Job], winner: TrialRecord, baseline: Mapping[str, Any]) -> dict[str, Any]:
        """The winner's best checkpoint on the validation data.

        The epoch is part of the name: before and after a resume the same trial may win with different checkpoints.
        """
        assert winner.epoch is not None  # it has a checkpoint
        alone = self.settings.max_trials == 1 and baseline["status"] == UNAVAILABLE
        if alone and self.study.plan.runtime == "engine":
            assert winner.job_id is not None
            metrics = dict(self.jobs.store.series.epochs(winner.job_id)[winner.epoch])
            validated = {"status": JobState.SUCCEEDED.value, "job_id": winner.job_id, "metrics": metrics}
            return {**validated, "source": _VALIDATED}
        name = trials.final_name(self.study.id, winner.trial, winner.epoch)
        return self._evaluated(members.get(name), name, parent=winner.job_id, checkpoint=f"epoch={winner.epoch}")

    def _evaluated(self, job: Job | None, name: str, *, parent: str | None, checkpoint: str) -> dict[str, Any]:
        if name in self._refused:
            return unavailable(self._refused[name])
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
            return unavailable(self._refused[name])
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
