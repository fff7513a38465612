"""A study step by step, its trainers played: what ends it, what a resume does again, how wide it may be."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.automl import leaderboard, report
from mask2former_mcp.jobs import members
from mask2former_mcp.jobs.checkpoints import saved
from mask2former_mcp.jobs.job import LIVE, JobState


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


def test_whoever_revives_a_trial_lets_it_run_beside_the_others_and_no_other_job(play: Any) -> None:
    played = play(max_trials=4, max_concurrent=2)
    played.running(started_at=time.time()).step()
    store = played.jobs.store
    trials = members.members(store, played.study.id)
    assert [members.width(store, trial) for trial in trials] == [2, 2]
    assert members.width(store, played.study) == 1
    plain = played.jobs.submit(played.laboratory.plan(request={"automl_policy": "off"}))
    assert members.width(store, plain) == 1
