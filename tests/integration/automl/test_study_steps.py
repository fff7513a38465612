"""A study step by step, its trainers played: what ends it, what a resume does again, how wide it may be."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.automl import ending, leaderboard
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.ending import Evaluations
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.automl.search import Search
from mask2former_mcp.jobs import members
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.spec import dotted

LIVE = tuple(state for state in JobState if not state.terminal)


class Played:
    """One study's supervisor without its process."""

    def __init__(self, laboratory: Any, **automl: Any) -> None:
        self.laboratory = laboratory
        self.jobs = laboratory.played()
        self.plan: Plan = laboratory.plan(**automl)
        self.study: Job = self.jobs.submit(self.plan)
        self.settings = StudySettings.model_validate(self.plan.study)
        folder: Path = laboratory.settings.home / "jobs" / self.study.id
        folder.mkdir(parents=True, exist_ok=True)
        self.search = Search(folder, self.settings, dotted.flatten(self.plan.spec))

    def running(self, *, started_at: float) -> RunningStudy:
        return RunningStudy(
            self.study, self.settings, self.search, self.jobs, self.laboratory.planner(),
            started_at=started_at, keep_all=False,
        )  # fmt: skip

    def to_the_end(self, running: RunningStudy) -> list[leaderboard.TrialRecord]:
        for _ in range(60):
            if not running.step():
                return running.records(running.members())
            self.jobs.play(self.study.id)
        raise AssertionError("the study did not end")

    def evaluations(self, *, started_at: float) -> Evaluations:
        study = replace(self.study, started_at=started_at)
        return Evaluations(study, self.settings, self.jobs, self.laboratory.planner())


@pytest.fixture
def play(laboratory: Any) -> Iterator[Any]:
    made: list[Played] = []

    def begin(**automl: Any) -> Played:
        made.append(Played(laboratory, **automl))
        return made[-1]

    yield begin
    for played in made:
        played.search.close()
        played.jobs.close()


def test_when_the_time_is_up_the_best_so_far_is_the_winner(play: Any) -> None:
    played = play(max_trials=9, epochs=60, time_budget_minutes=1.0)
    in_time, too_late = played.running(started_at=time.time()), played.running(started_at=time.time() - 61)
    for _ in range(3):
        assert in_time.step()
        played.jobs.play(played.study.id)
    records = played.to_the_end(too_late)
    best = leaderboard.winner(records)
    assert best is not None
    assert (best.trial, best.status, len(records)) == (0, "stopped", 1)
    won = ending.winner_facts(best, played.jobs, played.settings, best)
    assert "time budget" in won["reason"]
    assert (played.laboratory.settings.home / won["checkpoint"]).is_file()


def test_a_failed_study_that_is_resumed_tries_again(play: Any) -> None:
    played = play(max_trials=9, epochs=2)
    first = played.running(started_at=time.time() - 1)
    while first.step():
        for job in played.jobs.store.list(study_id=played.study.id, states=LIVE)[0]:
            if job.id != played.study.id:
                played.jobs.store.transition(
                    job.id, JobState.FAILED, expect=LIVE, text="disk full", message="disk full"
                )
    assert [record.cause for record in first.records(first.members())] == ["failed: disk full"] * 3
    assert not first.step()
    records = played.to_the_end(played.running(started_at=time.time() + 1))
    assert len(records) == 9
    assert leaderboard.winner(records) is not None


def test_an_evaluation_that_was_cancelled_with_the_study_is_made_again_when_it_is_resumed(play: Any) -> None:
    played = play(max_trials=2, epochs=2)
    began = time.time() - 1
    running = played.running(started_at=began)
    best = leaderboard.winner(played.to_the_end(running))
    evaluations = played.evaluations(started_at=began)
    submitted = evaluations.final(running.members(), best)
    played.jobs.cancel(submitted["job_id"])
    assert ending.is_over(evaluations.final(running.members(), best))
    again = played.evaluations(started_at=time.time() + 1).final(running.members(), best)
    assert (again["job_id"], again["status"]) == (submitted["job_id"], "queued")
    assert len(running.members()) == 3


def test_whoever_revives_a_trial_lets_it_run_beside_the_others_and_no_other_job(play: Any) -> None:
    played = play(max_trials=4, max_concurrent=2)
    played.running(started_at=time.time()).step()
    store = played.jobs.store
    trials = members.members(store, played.study.id)
    assert [members.width(store, trial) for trial in trials] == [2, 2]
    assert members.width(store, played.study) == 1
    plain = played.jobs.submit(played.laboratory.plan(max_trials=1))
    assert members.width(store, plain) == 1
