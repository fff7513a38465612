"""A supervisor that dies between any two writes: its successor makes the same study of it.

The jobs are real rows in a real store and the search is real Optuna; only the trainers are played here, one epoch per
look, so that every single write can be the last one.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.automl.search import Search
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.spec import dotted

pytestmark = pytest.mark.timeout(280)
EPOCHS = 3
LIVE = tuple(state for state in JobState if not state.terminal)


class Killed(BaseException):
    """No handler may catch it: that is what kill -9 is like."""


class PlayedJobs(Jobs):
    """Submitting starts no process; `play` trains every live job for one epoch."""

    def _start(self, job: Job) -> Job:
        return job

    def _followed(self, job: Job) -> Job:
        return job

    def reconcile(self) -> Sequence[str]:
        return ()

    def play(self, study_id: str) -> None:
        for job in self.store.list(study_id=study_id, states=LIVE)[0]:
            if job.id != study_id:
                self._train(job)

    def _train(self, job: Job) -> None:
        if job.state is JobState.STOPPING:
            self.store.transition(job.id, JobState.CANCELLED, expect=LIVE, text="stopped")
            return
        self.store.transition(job.id, JobState.RUNNING, expect=(JobState.QUEUED,), text="runs")
        self.store.history.begin(job.id, 1, resumed_from=None, resume_epoch=None, status_offset=0)
        epoch = len(self.store.series.epochs(job.id))
        rate = job.plan.spec["train"]["optim"]["lr"]
        top = 0.8 * math.exp(-((math.log10(rate / 2e-3)) ** 2))
        self.store.series.write(job.id, 1, epoch, {"mIoU": top * (1 - math.exp(-3 * (epoch + 1) / EPOCHS))})
        folder = self.results_dir(job.id) / "train"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"model_epoch_{epoch:03d}_step_{epoch:05d}.pth").write_bytes(b"weights")
        if epoch + 1 == EPOCHS:
            self.store.transition(job.id, JobState.SUCCEEDED, expect=LIVE, text="done")


class Grave:
    """Dies before or after the n-th write of a supervisor's life; n None: never."""

    def __init__(self, writes_left: int | None, *, after: bool) -> None:
        self.left, self.after = writes_left, after
        self.seen = 0

    def watch(self, target: Any, names: Sequence[str]) -> None:
        for name in names:
            setattr(target, name, self._watched(getattr(target, name)))

    def _watched(self, write: Any) -> Any:
        def watched(*values: Any, **named: Any) -> Any:
            self.seen += 1
            fatal = self.left is not None and self.seen == self.left
            if fatal and not self.after:
                raise Killed
            answer = write(*values, **named)
            if fatal:
                raise Killed
            return answer

        return watched


def lived(laboratory: Any, study: Job, settings: StudySettings, grave: Grave) -> bool:
    """One supervisor's life; whether it saw the end."""
    jobs = PlayedJobs(laboratory.settings, laboratory.environ)
    folder: Path = laboratory.settings.home / "jobs" / study.id
    folder.mkdir(parents=True, exist_ok=True)
    search = Search(folder, settings, dotted.flatten(study.plan.spec))
    grave.watch(jobs, ("submit", "cancel"))
    grave.watch(search, ("note", "finish", "stop", "fail", "report"))
    grave.watch(search.study, ("ask",))
    running = RunningStudy(study, settings, search, jobs, laboratory.planner(), started_at=0.0, keep_all=False)
    try:
        for _ in range(60):
            if not running.step():
                running.tidy_all()
                return True
            jobs.play(study.id)
    except Killed:
        return False
    finally:
        search.close()
        jobs.close()
    raise AssertionError("the study did not end")


def story(laboratory: Any, study: Job, settings: StudySettings) -> list[tuple[Any, ...]]:
    jobs = PlayedJobs(laboratory.settings, laboratory.environ)
    search = Search(laboratory.settings.home / "jobs" / study.id, settings, dotted.flatten(study.plan.spec))
    running = RunningStudy(study, settings, search, jobs, laboratory.planner(), started_at=0.0, keep_all=False)
    numbers = [job.trial for job in running.members().values()]
    assert sorted(numbers) == list(range(settings.max_trials)), "a trial is missing or was counted twice"
    records = [
        (r.trial, r.status, r.metric, r.epoch, r.checkpoint, r.parameters) for r in running.records(running.members())
    ]
    search.close()
    jobs.close()
    return records


def begun(laboratory: Any, plan: Plan) -> Job:
    jobs = PlayedJobs(laboratory.settings, laboratory.environ)
    study = jobs.submit(plan)
    jobs.close()
    return study


@pytest.fixture
def settings(laboratory: Any) -> tuple[Plan, StudySettings]:
    plan = laboratory.plan(epochs=EPOCHS, max_trials=3, algorithm="asha")
    found: Mapping[str, Any] = plan.study
    return plan, StudySettings.model_validate(found)


def test_whatever_write_is_the_last_the_successor_tells_the_same_story(
    laboratory: Any, settings: tuple[Plan, StudySettings]
) -> None:
    plan, study_settings = settings
    undisturbed = begun(laboratory, plan)
    whole = Grave(None, after=False)
    assert lived(laboratory, undisturbed, study_settings, whole)
    expected = story(laboratory, undisturbed, study_settings)
    assert {status for _, status, *_ in expected} == {"finished", "pruned"}
    assert whole.seen > 15
    for write in range(1, whole.seen + 1):
        study = begun(laboratory, plan)
        assert not lived(laboratory, study, study_settings, Grave(write, after=write % 2 == 0))
        assert lived(laboratory, study, study_settings, Grave(None, after=False))
        assert story(laboratory, study, study_settings) == expected, f"killed at write {write}"


def test_a_supervisor_that_dies_at_every_tenth_write_still_comes_to_the_end(
    laboratory: Any, settings: tuple[Plan, StudySettings]
) -> None:
    plan, study_settings = settings
    undisturbed, study = begun(laboratory, plan), begun(laboratory, plan)
    assert lived(laboratory, undisturbed, study_settings, Grave(None, after=False))
    lives = 1
    while not lived(laboratory, study, study_settings, Grave(10, after=lives % 2 == 0)):
        lives += 1
        assert lives < 30
    assert lives > 2
    assert story(laboratory, study, study_settings) == story(laboratory, undisturbed, study_settings)
