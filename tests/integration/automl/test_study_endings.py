"""How a study ends that was cancelled, ran out of time or failed, and what it keeps; its trainers are played."""

import time
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.automl import ending, leaderboard, report, resume, supervisor
from mask2former_mcp.automl.record import OUT_OF_TIME, WITH_STUDY
from mask2former_mcp.automl.settings import settings_of
from mask2former_mcp.automl.supervisor import StudySupervisor
from mask2former_mcp.errors import NotAvailable
from mask2former_mcp.jobs import members
from mask2former_mcp.jobs.job import LIVE, Job, JobState
from mask2former_mcp.jobs.verdict import Verdict
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import EvaluateRequest


def test_an_only_trial_that_could_not_be_submitted_is_submitted_when_the_study_is_resumed(play: Any) -> None:
    played = play(max_trials=1, epochs=2)
    name = f"{played.study.id}-trial-0"
    other = played.jobs.submit(played.laboratory.plan(request={"automl_policy": "off", "run_name": name}))
    first = played.running(started_at=time.time())
    for _ in range(3):
        assert not first.step()
    (record,) = first.records(first.members())
    assert (record.status, record.job_id) == ("stopped", None)
    assert f"belongs to job {other.id}" in record.cause
    message = played.view(first, started_at=time.time()).conclude().message
    assert record.cause in message
    assert message.endswith("Then resume_job tries the same trial again.")
    played.jobs.cancel(other.id)
    played.jobs.delete(other.id)
    (record,) = played.to_the_end(played.running(started_at=time.time() + 1))
    assert (record.trial, record.status, record.epochs) == (0, "finished", 2)


def train_on(played: Any, *, started_at: float) -> Job:
    """An only trial that has ended, and its study on the way to more epochs: preparing, no look taken yet."""
    played.to_the_end(played.running(started_at=time.time()))
    store, study = played.jobs.store, played.study
    played.view(played.running(started_at=time.time()), started_at=time.time()).conclude()
    for state, before in ((JobState.PREPARING, JobState.QUEUED), (JobState.RUNNING, JobState.PREPARING)):
        store.transition(study.id, state, expect=(before,), text="as its supervisor does")
    store.transition(study.id, JobState.SUCCEEDED, expect=(JobState.RUNNING,), text="ended")
    changes = resume.changes(store.get(study.id), 20, None, Machine(gpus=0, gpu_memory_gb=None, cpus=2, memory_gb=8.0))
    attempt = played.jobs.resume(study.id, study=changes).attempt
    store.transition(
        study.id, JobState.PREPARING, expect=(JobState.QUEUED,), attempt=attempt, text="begins", started_at=started_at
    )
    return store.get(study.id)


def test_cancelled_before_its_only_trial_trains_on_a_study_keeps_its_winner(play: Any) -> None:
    played = play(max_trials=1, epochs=4)
    study = train_on(played, started_at=time.time())
    played.jobs.cancel(study.id)
    StudySupervisor(played.jobs).run(study.id)
    assert played.jobs.store.get(study.id).state is JobState.CANCELLED
    (line,) = played.result()["trials"]
    assert (line["status"], line["epochs"], line["cause"]) == ("stopped", 4, WITH_STUDY)
    assert (played.jobs.parent(study.id).job_id, played.result()["winner"]["epoch"]) == (played.trial(0).id, 3)


def test_out_of_time_before_its_only_trial_trains_on_a_study_keeps_its_winner(play: Any) -> None:
    played = play(max_trials=1, epochs=4, time_budget_minutes=1.0)
    study = train_on(played, started_at=time.time() - 61)
    StudySupervisor(played.jobs).run(study.id)
    ended = played.jobs.store.get(study.id)
    assert ended.state is JobState.SUCCEEDED, ended.message
    assert 'resume_job with automl={"time_budget_minutes": ..}' in ended.message
    (line,) = played.result()["trials"]
    assert (line["status"], line["epochs"], line["cause"]) == ("stopped", 4, OUT_OF_TIME)
    assert (played.jobs.parent(study.id).job_id, played.result()["winner"]["epoch"]) == (played.trial(0).id, 3)


def test_a_cancelled_study_names_a_trial_that_it_cannot_ask_to_end(play: Any) -> None:
    played = play(max_trials=1, epochs=4)
    played.running(started_at=time.time()).step()
    trial, store = played.trial(0), played.jobs.store
    store.transition(played.study.id, JobState.PREPARING, expect=(JobState.QUEUED,), text="as its supervisor does")
    with store.database.write() as connection:
        connection.execute("UPDATE jobs SET plan = 'torn' WHERE id = ?", (trial.id,))
    played.jobs.cancel(played.study.id)
    StudySupervisor(played.jobs).run(played.study.id)
    ended = store.get(played.study.id)
    assert ended.state is JobState.CANCELLED
    assert ended.message.startswith(f"Cancelled, but {trial.id} may still run: ")


def test_trials_end_with_their_study_even_where_its_skill_bundle_is_broken(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = play(max_trials=2, epochs=4)
    played.running(started_at=time.time()).step()
    store = played.jobs.store
    store.transition(played.study.id, JobState.PREPARING, expect=(JobState.QUEUED,), text="as its supervisor does")
    played.jobs.cancel(played.study.id)

    def torn(folder: Path) -> None:
        raise NotAvailable("no skill_info.yaml", fix="add it")

    monkeypatch.setattr(supervisor.bundle, "load", torn)
    with pytest.raises(NotAvailable):
        StudySupervisor(played.jobs).run(played.study.id)
    asked = [job.state for job in members.members(store, played.study.id) if job.trial is not None]
    assert asked
    assert not {JobState.QUEUED, JobState.RUNNING, JobState.PREPARING} & set(asked)


def broken(played: Any, *, started_at: float) -> Verdict:
    """The study's end after its only trial crashed."""
    view = played.view(played.running(started_at=started_at), started_at=started_at)
    assert not view.look()
    played.jobs.play(played.study.id)
    assert played.jobs.metrics(played.study.id)["mIoU"] == played.jobs.metrics(played.trial(0).id)["mIoU"]
    played.jobs.store.transition(
        played.trial(0).id, JobState.FAILED, expect=LIVE, text="disk full", message="disk full", error_code="disk_full"
    )
    assert view.look()
    verdict = view.conclude()
    assert (verdict.state, verdict.message, verdict.error_code) == (JobState.FAILED, "disk full", "disk_full")
    assert [failure["cause"] for failure in played.result()["failures"]] == ["failed: disk full"]
    return verdict


def test_what_a_failed_only_trial_kept_can_be_used_under_the_studys_id(play: Any) -> None:
    played = play(max_trials=1, epochs=4)
    verdict = broken(played, started_at=time.time() - 1)
    won = played.result()["winner"]
    assert (won["job_id"], won["epoch"], played.result()["final"]) == (played.trial(0).id, 0, None)
    assert "disk full" in won["reason"]
    played.jobs.store.transition(played.study.id, verdict.state, expect=(JobState.QUEUED,), text="ended")
    plan = played.laboratory.planner().plan(EvaluateRequest(parent_job_id=played.study.id))
    assert plan.checkpoint is not None
    assert plan.checkpoint.sha256 == won["sha256"]
    assert any("ended as failed: its weights may be of an unfinished run" in words for words in plan.warnings)


def test_a_study_that_fails_while_it_trains_on_keeps_the_winner_it_had(play: Any) -> None:
    played = play(max_trials=1, epochs=4)
    played.grow(settings_of(train_on(played, started_at=time.time())))
    played.jobs.store.series.write(played.trial(0).id, 1, 1, {"mIoU": 0.99})  # the second epoch was the best
    broken(played, started_at=time.time() - 1)
    assert (played.jobs.parent(played.study.id).job_id, played.result()["winner"]["epoch"]) == (played.trial(0).id, 1)


def test_a_study_whose_time_was_up_before_its_only_trial_began_says_so(play: Any) -> None:
    played = play(max_trials=1, epochs=4, time_budget_minutes=1.0)
    began = time.time() - 61
    view = played.view(played.running(started_at=began), started_at=began)
    assert view.look()
    verdict = view.conclude()
    assert (verdict.state, verdict.error_code) == (JobState.FAILED, "no_winner")
    assert verdict.message == (
        "The time budget ended before the first trial began:"
        ' resume_job with automl={"time_budget_minutes": ..} begins it.'
    )


def test_an_evaluation_that_was_cancelled_with_the_study_is_made_again_when_it_is_resumed(play: Any) -> None:
    played = play(max_trials=2, epochs=2)
    began = time.time() - 1
    running = played.running(started_at=began)
    best = leaderboard.winner(played.to_the_end(running))
    evaluations, unmeasured = played.evaluations(started_at=began), report.unavailable("from scratch")
    submitted = evaluations.final(running.members(), best, unmeasured)
    played.jobs.cancel(submitted["job_id"])
    assert ending.is_over(evaluations.final(running.members(), best, unmeasured))
    again = played.evaluations(started_at=time.time() + 1).final(running.members(), best, unmeasured)
    assert (again["job_id"], again["status"]) == (submitted["job_id"], "queued")
    assert len(running.members()) == 3
