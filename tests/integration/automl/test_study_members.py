"""What may be done to the trials of a study, and to a study that nobody follows any more."""

import time
from typing import Any

import pytest

from mask2former_mcp.errors import WrongState
from mask2former_mcp.jobs import members, reconcile
from mask2former_mcp.jobs.job import LIVE, Job, JobState
from mask2former_mcp.jobs.service import Jobs


@pytest.fixture
def jobs(laboratory: Any) -> Any:
    jobs = laboratory.played()
    yield jobs
    jobs.close()


@pytest.fixture
def study(laboratory: Any, jobs: Jobs) -> Job:
    """A running study with an ended trial 0 and a running trial 1; its supervisor is this test."""
    plan = laboratory.plan(max_trials=4)
    study = jobs.submit(plan)
    jobs.store.transition(study.id, JobState.RUNNING, expect=(JobState.QUEUED,), text="searching")
    alone = {"study": None, "automl": plan.automl.model_copy(update={"route": "direct"})}
    for number, state in enumerate((JobState.SUCCEEDED, JobState.RUNNING)):
        trial = jobs.submit(plan.model_copy(update=alone), study_id=study.id, trial=number)
        jobs.store.transition(trial.id, state, expect=(JobState.QUEUED,), text="")
    return jobs.store.get(study.id)


def trial(jobs: Jobs, study: Job, number: int) -> Job:
    (found,) = [job for job in members.members(jobs.store, study.id) if job.trial == number]
    return found


def lost(jobs: Jobs, study: Job) -> Job:
    jobs.store.transition(study.id, JobState.LOST, expect=LIVE, text="its supervisor ended five times")
    return jobs.store.get(study.id)


def test_an_ended_trial_of_a_study_that_goes_on_cannot_be_deleted_and_the_error_names_the_study(
    jobs: Jobs, study: Job
) -> None:
    ended = trial(jobs, study, 0)
    with pytest.raises(WrongState, match=f"{ended.id} belongs to study {study.id}, which is running") as refused:
        jobs.delete(ended.id)
    assert f"cancel_job {study.id}" in refused.value.fix
    # Nor when the question was asked a moment before the study was resumed.
    assert not jobs.store.remove(ended.id)
    assert jobs.store.get(ended.id) == ended
    lost(jobs, study)
    jobs.delete(ended.id)
    assert [job.trial for job in members.members(jobs.store, study.id)] == [1]


def test_cancelling_a_lost_study_stops_the_trials_that_still_run(jobs: Jobs, study: Job) -> None:
    study = lost(jobs, study)
    queued = jobs.submit(trial(jobs, study, 0).plan, study_id=study.id, trial=2)
    running = trial(jobs, study, 1)
    assert {job.id for job in jobs.cancellable(study.id)} == {running.id, queued.id}
    assert jobs.cancel(study.id).state is JobState.LOST
    assert jobs.store.get(running.id).state is JobState.STOPPING
    assert jobs.store.get(queued.id).state is JobState.CANCELLED
    jobs.play(study.id)
    assert jobs.store.get(running.id).state is JobState.CANCELLED
    assert not jobs.cancellable(study.id)


def test_a_lost_study_is_not_deleted_from_under_a_trial_that_still_runs(jobs: Jobs, study: Job) -> None:
    study = lost(jobs, study)
    with pytest.raises(WrongState, match="1 of its jobs still run") as refused:
        jobs.delete(study.id)
    assert f"cancel_job {study.id}" in refused.value.fix
    assert len(members.members(jobs.store, study.id)) == 2


def test_cancelling_a_resumed_study_before_anybody_follows_it_stops_the_trials_too(jobs: Jobs, study: Job) -> None:
    study = lost(jobs, study)
    jobs.resume(study.id, study={})
    jobs.cancel(study.id)
    assert jobs.store.get(study.id).state is JobState.CANCELLED
    assert trial(jobs, study, 1).state is JobState.STOPPING


@pytest.mark.parametrize("asked_to_stop", [False, True])
def test_a_study_that_is_given_up_says_what_still_runs_or_stops_it_as_it_was_asked_to(
    laboratory: Any, jobs: Jobs, study: Job, asked_to_stop: bool
) -> None:
    if asked_to_stop:
        jobs.store.transition(study.id, JobState.STOPPING, expect=(JobState.RUNNING,), text="cancel asked for")
    jobs.store.history.begin(study.id, 1, resumed_from=None, resume_epoch=None, status_offset=0)
    given_up = jobs.store.get(study.id)
    reconcile._give_up(laboratory.settings, jobs.store, given_up, {}, "Its supervisor ended 5 times.")
    found = jobs.store.get(study.id)
    assert found.state is JobState.LOST
    assert ("resume_job takes them over, cancel_job stops them" in found.message) != asked_to_stop
    wanted = JobState.STOPPING if asked_to_stop else JobState.RUNNING
    assert trial(jobs, study, 1).state is wanted
    took = jobs.store.history.seconds(study.id)
    time.sleep(0.01)
    assert jobs.store.history.seconds(study.id) == took, "an attempt that was given up has ended"
