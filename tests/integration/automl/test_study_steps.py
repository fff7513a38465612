"""A study step by step, its trainers played: what ends it, what a resume does again, how wide it may be."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.automl import ending, leaderboard, report, result, resume, supervisor
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.ending import Evaluations
from mask2former_mcp.automl.record import OUT_OF_TIME, WITH_STUDY
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.automl.search import Search
from mask2former_mcp.automl.settings import settings_of
from mask2former_mcp.automl.supervisor import StudySupervisor
from mask2former_mcp.automl.view import StudyView
from mask2former_mcp.errors import NotAvailable
from mask2former_mcp.jobs import members
from mask2former_mcp.jobs.checkpoints import saved
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.verdict import Verdict
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import EvaluateRequest
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

    def grow(self, settings: StudySettings) -> None:
        """As the supervisor of the next attempt begins."""
        self.search.close()
        self.settings = settings
        folder = self.laboratory.settings.home / "jobs" / self.study.id
        self.search = Search(folder, settings, dotted.flatten(self.plan.spec))

    def running(self, *, started_at: float, keep_all: bool = False) -> RunningStudy:
        return RunningStudy(
            self.study, self.settings, self.search, self.jobs, self.laboratory.planner(),
            started_at=started_at, keep_all=keep_all,
        )  # fmt: skip

    def view(self, running: RunningStudy, *, started_at: float) -> StudyView:
        evaluations = self.evaluations(started_at=started_at)
        return StudyView(self.study, self.settings, running, evaluations, Folders.of(self.jobs.store.home, self.study))

    def result(self) -> dict[str, Any]:
        found = result.read(self.jobs.results_dir(self.study.id))
        assert found is not None
        return found

    def trial(self, number: int) -> Job:
        (found,) = [job for job in members.members(self.jobs.store, self.study.id) if job.trial == number]
        return found

    def trained(self) -> dict[int, int]:
        """Trial -> epochs that were really trained, over all attempts."""
        jobs = members.members(self.jobs.store, self.study.id)
        return {job.trial: len(self.jobs.store.series.epochs(job.id)) for job in jobs if job.trial is not None}

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
    won = report.winner_facts(best, played.jobs, played.settings, best)
    assert "time budget" in won["reason"]
    assert (played.laboratory.settings.home / won["checkpoint"]).is_file()


def test_a_trial_that_the_time_budget_halted_goes_on_in_a_resumed_study_and_is_counted_once(play: Any) -> None:
    played = play(max_trials=2, epochs=6, time_budget_minutes=1.0, algorithm="random")
    began = time.time() - 1
    in_time = played.running(started_at=began)
    for _ in range(3):
        assert in_time.step()
        played.jobs.play(played.study.id)
    halted = played.to_the_end(played.running(started_at=time.time() - 61))
    assert [(r.trial, r.status, r.epochs, r.epoch) for r in halted] == [(0, "stopped", 3, 2)]
    assert "time budget" in halted[0].cause
    job = played.trial(0)
    assert [checkpoint.epoch for checkpoint in saved(played.jobs.results_dir(job.id) / "train")] == [2]
    unmeasured = report.unavailable("from scratch")
    early = played.evaluations(started_at=began).final({}, halted[0], unmeasured)

    resumed = played.running(started_at=time.time() + 1)
    records = played.to_the_end(resumed)
    assert [(r.trial, r.status, r.epochs) for r in records] == [(0, "finished", 6), (1, "finished", 6)]
    assert played.trial(0).id == job.id
    attempts = played.jobs.store.history.attempts(job.id)
    assert [attempt.resume_epoch for attempt in attempts] == [None, 2]
    assert played.trained() == {0: 6, 1: 6}
    assert resumed.spending.epochs_trained() == 12
    # What is evaluated at the end is what wins now, not what won when the time was up.
    final = played.evaluations(started_at=began).final(resumed.members(), records[0], unmeasured)
    assert final["job_id"] != early["job_id"]


def test_halted_by_the_clock_a_trial_keeps_its_best_and_its_last_checkpoint(play: Any) -> None:
    played = play(max_trials=1 + 1, epochs=9, time_budget_minutes=1.0)
    in_time = played.running(started_at=time.time())
    for _ in range(4):
        assert in_time.step()
        played.jobs.play(played.study.id)
    job = played.trial(0)
    played.jobs.store.series.write(job.id, 1, 1, {"mIoU": 0.99})  # the second epoch was the best
    (halted,) = played.to_the_end(played.running(started_at=time.time() - 61))
    assert halted.epoch == 1
    assert [checkpoint.epoch for checkpoint in saved(played.jobs.results_dir(job.id) / "train")] == [1, 3]


def test_a_supervisor_killed_while_the_clock_halts_its_trials_is_followed_by_one_that_halts_the_same(play: Any) -> None:
    played = play(max_trials=4, max_concurrent=2, epochs=6, time_budget_minutes=1.0, algorithm="random")
    in_time, too_late = played.running(started_at=time.time()), time.time() - 61
    for _ in range(2):
        assert in_time.step()
        played.jobs.play(played.study.id)
    # Noted, and killed before the deed: the next one cancels what still runs.
    played.search.note(0, halted="the study's time budget ended before its last epoch")
    records = played.to_the_end(played.running(started_at=too_late))
    assert [(r.trial, r.status) for r in records] == [(0, "stopped"), (1, "stopped")]
    assert not played.running(started_at=too_late).step()
    assert [job.state for job in members.members(played.jobs.store, played.study.id)] == [JobState.CANCELLED] * 2


def test_a_trial_cancelled_by_hand_is_over_and_one_cancelled_while_nobody_ran_the_study_goes_on(play: Any) -> None:
    played = play(max_trials=2, max_concurrent=2, epochs=6, algorithm="random")
    running = played.running(started_at=time.time() - 1)
    assert running.step()
    played.jobs.play(played.study.id)
    played.jobs.cancel(played.trial(1).id)
    played.jobs.play(played.study.id)
    assert running.step()
    assert [r.status for r in running.records(running.members())] == ["running", "stopped"]
    played.jobs.cancel(played.trial(0).id)  # the study is lost, say
    played.jobs.play(played.study.id)
    records = played.to_the_end(played.running(started_at=time.time() + 1))
    assert [(r.trial, r.status, r.epochs) for r in records] == [(0, "finished", 6), (1, "stopped", 1)]
    assert records[1].cause == "cancelled by hand"


@pytest.mark.parametrize(("epochs", "seed"), [(9, 1), (9, 2), (20, 3)])
def test_left_alone_on_one_gpu_the_epochs_of_all_trials_add_up_to_at_most_three_plain_runs(
    play: Any, epochs: int, seed: int
) -> None:
    played = play(gpus=1, epochs=epochs, max_trials=None, seed=seed)
    records = played.to_the_end(played.running(started_at=time.time()))
    trained = played.trained()
    assert trained[0] == epochs
    assert epochs < sum(trained.values()) <= 3 * epochs
    assert len(records) == len(trained) > 3
    assert {n: t for n, t in trained.items() if n and t == epochs} != trained
    assert leaderboard.winner(records) is not None


def test_after_the_first_epochs_the_time_left_is_measured_not_estimated(play: Any) -> None:
    played = play(max_trials=3, epochs=4, algorithm="random")
    running = played.running(started_at=time.time())
    running.step()
    assert running.spending.eta_s(running.records(running.members())) is None
    for _ in range(4):
        played.jobs.play(played.study.id)
        running.step()
    (plain, _) = running.records(running.members())
    slow = replace(plain, duration_s=40.0)  # ten seconds an epoch
    assert (slow.status, slow.epochs, running.spending.epochs_left()) == ("finished", 4, 8)
    assert running.spending.eta_s([slow]) == pytest.approx(80.0)


def starting_weights(kind: str, folder: Path) -> Path:
    """Of a network smaller than the default one, and nothing beside the file says so; a folder's config.json does."""
    if kind != "folder":
        file = folder / f"model_epoch_001_step_00010{kind}"
        file.write_bytes(b"weights")
        return file
    place = folder / "mask2former"
    place.mkdir()
    described = {"model_type": "mask2former", "backbone_config": {"model_type": "swin"}, "hidden_dim": 64}
    (place / "config.json").write_text(json.dumps(described))
    (place / "model.safetensors").write_bytes(b"weights")
    return place


@pytest.mark.parametrize("kind", [".pth", ".pkl", "folder"])
def test_the_starting_weights_are_evaluated_before_the_first_trial_starts(play: Any, tmp_path: Path, kind: str) -> None:
    weights = starting_weights(kind, tmp_path)
    played = play(max_trials=2, epochs=2, request={"checkpoint": str(weights)})
    began = time.time() - 1
    running = played.running(started_at=began)
    view = played.view(running, started_at=began)
    assert not view.look()
    (evaluation,) = members.members(played.jobs.store, played.study.id)
    assert (evaluation.action, evaluation.trial) == ("evaluate", None)
    assert evaluation.plan.spec["evaluate"]["checkpoint"] == str(weights)
    assert evaluation.plan.spec["dataset"]["val"] == played.plan.spec["dataset"]["val"]
    assert evaluation.plan.spec["model"] == played.plan.spec["model"]
    assert evaluation.plan.spec["model"]["mask_former"]["hidden_dim"] == 64
    for _ in range(20):
        played.jobs.play(played.study.id)
        if view.look():
            break
    assert view.conclude().state is JobState.SUCCEEDED
    baseline = played.result()["baseline"]
    assert (baseline["status"], baseline["job_id"], baseline["metrics"]) == ("succeeded", evaluation.id, {"mIoU": 0.5})
    first = played.jobs.store.get(played.trial(0).id)
    assert first.created_at > played.jobs.store.get(evaluation.id).finished_at


def test_a_backbone_alone_gives_no_baseline_and_the_result_says_why(play: Any, tmp_path: Path) -> None:
    backbone = tmp_path / "swin.pth"
    backbone.write_bytes(b"weights")
    played = play(max_trials=2, epochs=2, request={"preset": None, "pretrained_weights": str(backbone)})
    baseline = played.evaluations(started_at=0.0).baseline({})
    assert baseline["status"] == "unavailable"
    assert "head is untrained" in baseline["reason"]
    assert members.members(played.jobs.store, played.study.id) == []


def test_while_a_study_goes_on_it_shows_the_best_so_far_named_as_such(play: Any) -> None:
    played = play(max_trials=2, epochs=2, algorithm="random")
    began = time.time() - 1
    running = played.running(started_at=began)
    view = played.view(running, started_at=began)
    assert not view.look()
    assert (played.result()["winner"], played.result()["best_so_far"]) == (None, None)
    played.jobs.play(played.study.id)
    view.look()
    first = played.result()["best_so_far"]
    assert (first["trial"], first["epoch"]) == (0, 0)
    assert "it still runs; not the end" in first["reason"]
    assert played.jobs.metrics(played.study.id)["mIoU"] == [[0, pytest.approx(first["metric"])]]
    while not view.look():
        played.jobs.play(played.study.id)
    view.conclude()
    won = played.result()["winner"]
    assert played.result()["best_so_far"] is None

    # Resumed: the winner leads, until the study ends again.
    more = played.settings.model_copy(update={"max_trials": 3})
    played.settings = played.search.settings = more
    running = played.running(started_at=time.time())
    view = played.view(running, started_at=time.time())
    assert not view.look()
    leading = played.result()["best_so_far"]
    assert played.result()["winner"] is None
    assert (leading["job_id"], leading["epoch"]) == (won["job_id"], won["epoch"])
    assert leading["reason"].startswith("so far: best mIoU")


@pytest.mark.parametrize("keep_all", [False, True])
def test_finished_trials_keep_their_best_checkpoint_and_losers_none_unless_the_operator_keeps_all(
    play: Any, keep_all: bool
) -> None:
    played = play(max_trials=3, epochs=9, algorithm="asha", seed=5)
    records = played.to_the_end(played.running(started_at=time.time(), keep_all=keep_all))
    assert {r.status for r in records} == {"finished", "pruned"}
    kept = {r.trial: len(saved(played.jobs.results_dir(r.job_id) / "train")) for r in records}
    wanted = played.trained() if keep_all else {r.trial: int(r.status == "finished") for r in records}
    assert kept == wanted


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


def train_on(played: Played, *, started_at: float) -> Job:
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


def broken(played: Played, *, started_at: float) -> Verdict:
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


def test_whoever_revives_a_trial_lets_it_run_beside_the_others_and_no_other_job(play: Any) -> None:
    played = play(max_trials=4, max_concurrent=2)
    played.running(started_at=time.time()).step()
    store = played.jobs.store
    trials = members.members(store, played.study.id)
    assert [members.width(store, trial) for trial in trials] == [2, 2]
    assert members.width(store, played.study) == 1
    plain = played.jobs.submit(played.laboratory.plan(request={"automl_policy": "off"}))
    assert members.width(store, plain) == 1
