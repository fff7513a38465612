"""A study from beginning to end: real planning, real jobs, real Optuna, an engine that answers in a blink."""

from typing import Any

import pytest

from mask2former_mcp.automl import resume
from mask2former_mcp.errors import InvalidRequest, NotFound
from mask2former_mcp.jobs.checkpoints import saved
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.members import members
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import AutomlSettings, EvaluateRequest

pytestmark = pytest.mark.timeout(180)
MACHINE = Machine(gpus=0, gpu_memory_gb=None, cpus=2, memory_gb=8.0)


def test_a_study_runs_its_trials_as_jobs_and_hands_over_one_winner(laboratory: Any) -> None:
    laboratory.behave(epoch_s=0.05)
    study = laboratory.start(max_trials=3)
    ended = laboratory.finish(study)
    assert ended.state is JobState.SUCCEEDED, ended.message + laboratory.log(study)
    trials, found = laboratory.trials(study), laboratory.result(study)

    # Trial 0 is the plain run; every trial is a member, and lineage says nothing of that.
    assert sorted(trials) == [0, 1, 2]
    assert all((job.study_id, job.parent_job_id) == (study.id, None) for job in trials.values())
    assert laboratory.jobs.spec(trials[0].id)["train"]["optim"]["lr"] == 2e-3
    assert {job.plan.automl.route for job in trials.values()} == {"direct"}

    # The winner, with its reasons.
    won = found["winner"]
    best = found["leaderboard"][0]
    assert (best["trial"], best["job_id"]) == (won["trial"], won["job_id"])
    assert won["metric"] >= next(line["metric"] for line in found["trials"] if line["trial"] == 0)
    assert (laboratory.settings.home / won["checkpoint"]).is_file()
    assert len(won["sha256"]) == 64
    assert "num_epochs" not in won["spec"]["train"]
    assert won["spec"]["model"]["mask_former"]["hidden_dim"] == 64
    assert found["baseline"]["status"] == "unavailable"
    assert found["final"]["status"] == "succeeded"
    assert found["final"]["metrics"]["mIoU"] == 0.5
    assert ended.metrics["mIoU"] == pytest.approx(won["metric"])
    assert "won" in ended.message
    assert found["duration_s"] > sum(line["duration_s"] for line in found["trials"]) / 2

    # Finished trials keep their best checkpoint, losers none; pictures are artifacts.
    for line in found["trials"]:
        kept = saved(laboratory.jobs.results_dir(line["job_id"]) / "train")
        assert len(kept) == (1 if line["status"] == "finished" else 0)
    files = {item["path"] for item in laboratory.jobs.artifacts(study.id)}
    drawn = {f"pictures/{name}.png" for name in ("optimization_history", "param_importances", "parallel_coordinate")}
    assert {"study.json", *drawn} <= files
    assert (set(found["pictures"]), found["not_drawn"]) == (drawn, {})

    # Later actions take the study's id and get the winner.
    plan = laboratory.planner().plan(EvaluateRequest(parent_job_id=study.id))
    assert plan.checkpoint is not None
    assert plan.checkpoint.sha256 == won["sha256"]

    # A bigger budget goes on with the same study; the trials there are stay.
    with pytest.raises(InvalidRequest, match="used its budget"):
        resume.changes(ended, None, None, MACHINE)
    changes = resume.changes(ended, None, AutomlSettings(max_trials=4), MACHINE)
    assert laboratory.finish(laboratory.jobs.resume(study.id, study=changes)).state is JobState.SUCCEEDED
    more = laboratory.trials(study)
    assert sorted(more) == [0, 1, 2, 3]
    assert {number: job.id for number, job in more.items() if number < 3} == {n: j.id for n, j in trials.items()}
    assert all(len(laboratory.starts(job)) == 1 for job in more.values())

    # Deleting the study deletes its members.
    laboratory.jobs.delete(study.id)
    assert not members(laboratory.jobs.store, study.id)
    with pytest.raises(NotFound):
        laboratory.jobs.get(trials[0].id)


def test_two_trials_really_run_at_once_and_a_failed_one_never_wins_and_tells_its_cause(laboratory: Any) -> None:
    # Trial 0 crashes. The other two wait for each other, so that neither ends unless both run: no clock decides.
    laboratory.behave(fails=[2e-3], meet=2)
    study = laboratory.start(max_trials=3, max_concurrent=2, epochs=4, algorithm="random")
    assert laboratory.finish(study).state is JobState.SUCCEEDED
    trials = laboratory.trials(study)
    (a,), (b,) = (laboratory.spans(trials[number]) for number in (1, 2))
    assert max(a[0], b[0]) < min(a[1], b[1])
    found = laboratory.result(study)
    assert found["winner"]["trial"] != 0
    (failure,) = found["failures"]
    assert failure["trial"] == 0
    assert "out of memory" in failure["cause"]


def test_trials_that_run_at_once_have_a_gpu_each(laboratory: Any) -> None:
    laboratory.pretend_gpus("GPU-aaaa", "GPU-bbbb")
    laboratory.behave(meet=2)
    study = laboratory.start(gpus=2, max_trials=2, max_concurrent=2, epochs=2, algorithm="random")
    assert laboratory.finish(study).state is JobState.SUCCEEDED, laboratory.log(study)
    seen = [laboratory.devices(job) for job in laboratory.trials(study).values()]
    assert sorted(seen) == [["GPU-aaaa"], ["GPU-bbbb"]]


def test_a_study_without_any_success_fails_with_the_causes_and_stops_trying(laboratory: Any) -> None:
    laboratory.behave(fails=[2e-3], silent=True)  # trial 0 crashes, the others never measure anything
    study = laboratory.start(max_trials=9, epochs=2, algorithm="random")
    ended = laboratory.finish(study)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "no_winner")
    assert len(laboratory.trials(study)) == 3
    crashed, *silent = laboratory.result(study)["trials"]
    assert "out of memory" in crashed["cause"]
    # Without a metric a trial has failed; it does not count as zero.
    assert [(line["status"], line["metric"]) for line in silent] == [("failed", None)] * 2
    assert all("mIoU" in line["cause"] for line in silent)
    assert "out of memory" in ended.message
    with pytest.raises(NotFound, match="no winner"):
        laboratory.jobs.parent(study.id)
