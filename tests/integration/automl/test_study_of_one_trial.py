"""A study of one trial, what a machine without a GPU gets: as direct as a plain training, and a study all the same."""

from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.automl import resume
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.checkpoints import saved
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.members import members, shown_trial
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import AutomlSettings, EvaluateRequest

pytestmark = pytest.mark.timeout(180)
MACHINE = Machine(gpus=0, gpu_memory_gb=None, cpus=2, memory_gb=8.0)


def start(laboratory: Any, **changes: Any) -> Job:
    return laboratory.start(**{"max_trials": None, "seed": None, "epochs": 4, **changes})


def resumed(laboratory: Any, study: Job, num_epochs: int | None = None, **automl: Any) -> Job:
    """As resume_job does it, to the end."""
    asked = AutomlSettings(**automl) if automl else None
    changes = resume.changes(laboratory.jobs.get(study.id), num_epochs, asked, MACHINE)
    return laboratory.finish(laboratory.jobs.resume(study.id, study=changes))


def succeeded(laboratory: Any, ended: Job) -> Job:
    assert ended.state is JobState.SUCCEEDED, ended.message + laboratory.log(ended)
    return ended


def test_it_is_the_plain_run_in_a_job_of_its_own_and_shows_itself_as_that_does(laboratory: Any) -> None:
    laboratory.behave(epoch_s=0.5)
    study = start(laboratory)
    assert "evaluate job" not in study.plan.warnings[0]
    only = laboratory.until(lambda: laboratory.trials(study).get(0), "its trial")
    assert only.plan.spec == laboratory.plan(epochs=4, request={"automl_policy": "off"}).spec
    shown = laboratory.until(
        lambda: (now := laboratory.jobs.get(study.id)).metrics and 0 < now.progress < 1 and now, "its first epoch"
    )
    assert "study of one trial" in shown.message
    assert "trials ended" not in shown.phase
    assert shown.metrics.keys() == laboratory.jobs.get(only.id).metrics.keys()

    ended, found = succeeded(laboratory, laboratory.finish(study)), laboratory.result(study)
    assert ended.message.startswith("Best mIoU ")
    assert ended.message.endswith(f"This is a study of one trial, the resolved spec itself ({only.id}).")
    won = found["winner"]
    assert (won["job_id"], won["trial"], won["epoch"]) == (only.id, 0, 3)
    assert "only trial" in won["reason"]
    assert ended.metrics["mIoU"] == pytest.approx(won["metric"])
    # From scratch there is nothing to measure before, and what it validated last is the measure after: no more jobs.
    assert "from scratch" in found["baseline"]["reason"]
    assert (found["final"]["status"], found["final"]["job_id"]) == ("succeeded", only.id)
    assert found["final"]["metrics"]["mIoU"] == pytest.approx(won["metric"])
    assert "validation of this epoch" in found["final"]["source"]
    assert [job.id for job in members(laboratory.jobs.store, study.id)] == [only.id]
    assert (found["pictures"], len(found["not_drawn"])) == ([], 3)
    # It keeps what the plain run keeps, and its log and its winner are found under the study's id.
    assert len(saved(laboratory.jobs.results_dir(only.id) / "train")) == 4
    own, heard = laboratory.jobs.logs(only.id), laboratory.jobs.logs(study.id)
    assert (heard.lines, heard.job_id) == (own.lines, only.id)
    assert (own.next_cursor, heard.next_cursor) == (f"{own.size}", f"{only.id}:{own.size}")
    assert laboratory.jobs.logs(study.id, cursor=heard.next_cursor).lines == ()
    assert laboratory.jobs.logs(study.id, cursor=f"another:{own.size}").lines == own.lines
    assert laboratory.jobs.metrics(study.id) == laboratory.jobs.metrics(only.id)
    plan = laboratory.planner().plan(EvaluateRequest(parent_job_id=study.id))
    assert plan.checkpoint is not None
    assert plan.checkpoint.sha256 == won["sha256"]


def test_from_a_checkpoint_it_is_evaluated_before_and_after(laboratory: Any, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    study = start(laboratory, epochs=2, request={"checkpoint": str(weights)})
    assert "two evaluate jobs come with it" in study.plan.warnings[0]
    succeeded(laboratory, laboratory.finish(study))
    found = laboratory.result(study)
    jobs = {job.run_name.removeprefix(f"{study.id}-"): job for job in members(laboratory.jobs.store, study.id)}
    assert jobs.keys() == {"baseline", "trial-0", "final-0-1"}
    assert jobs["baseline"].plan.spec["evaluate"]["checkpoint"] == str(weights)
    assert jobs["baseline"].finished_at <= jobs["trial-0"].created_at <= jobs["final-0-1"].created_at
    for name in ("baseline", "final"):
        assert (found[name]["status"], found[name]["metrics"]["mIoU"]) == ("succeeded", 0.5)


def test_the_clock_stops_it_and_a_resume_with_more_time_finishes_the_same_trial(laboratory: Any) -> None:
    laboratory.behave(epoch_s=1.5)
    study = start(laboratory, epochs=20, time_budget_minutes=0.25)
    ended = succeeded(laboratory, laboratory.finish(study))
    assert 'resume_job with automl={"time_budget_minutes": ..}' in ended.message
    (line,) = laboratory.result(study)["trials"]
    assert (line["status"], 0 < line["epochs"] < 20) == ("stopped", True)
    assert "time budget" in line["cause"]
    assert laboratory.result(study)["winner"]["epoch"] == line["epoch"]
    with pytest.raises(InvalidRequest, match="used its budget of 1 trial") as refused:
        resumed(laboratory, study)
    assert "time_budget_minutes" in refused.value.fix

    laboratory.behave()
    succeeded(laboratory, resumed(laboratory, study, time_budget_minutes=5.0))
    (finished,) = laboratory.result(study)["trials"]
    assert (finished["status"], finished["epochs"], finished["job_id"]) == ("finished", 20, line["job_id"])
    assert laboratory.jobs.attempts(line["job_id"])[1].resume_epoch >= line["epochs"] - 1


def test_a_bigger_budget_searches_on_around_it(laboratory: Any) -> None:
    study = start(laboratory, epochs=9)
    succeeded(laboratory, laboratory.finish(study))
    only = laboratory.trials(study)[0]
    with pytest.raises(InvalidRequest, match="has trained all of its 9 epochs") as refused:
        resumed(laboratory, study)
    assert '"max_trials": 4' in refused.value.fix
    assert "num_epochs above 9" in refused.value.fix

    ended = succeeded(laboratory, resumed(laboratory, study, max_trials=4))
    trials, found = laboratory.trials(study), laboratory.result(study)
    assert sorted(trials) == [0, 1, 2, 3]
    assert (trials[0].id, len(laboratory.starts(only))) == (only.id, 1)
    assert found["winner"]["metric"] >= found["trials"][0]["metric"]
    assert found["budget"]["epochs_trained"] < 4 * 9, "weak ones are stopped at rungs"
    # Now that one was chosen among several, the winner is evaluated, and the losers' checkpoints go.
    assert found["final"]["job_id"] not in {job.id for job in trials.values()}
    assert len(saved(laboratory.jobs.results_dir(only.id) / "train")) == 1
    assert "of 4 won" in ended.message


def test_more_epochs_train_the_same_trial_on_and_all_later_ones_have_as_many(laboratory: Any) -> None:
    study = start(laboratory, epochs=3)
    succeeded(laboratory, laboratory.finish(study))
    only = laboratory.trials(study)[0]
    with pytest.raises(InvalidRequest, match="num_epochs=3"):
        resumed(laboratory, study, 3)
    succeeded(laboratory, resumed(laboratory, study, 5))
    (line,) = laboratory.result(study)["trials"]
    assert (line["job_id"], line["status"], line["epochs"], line["epoch"]) == (only.id, "finished", 5, 4)
    assert [attempt.resume_epoch for attempt in laboratory.jobs.attempts(only.id)] == [None, 2]
    assert laboratory.jobs.spec(study.id)["train"]["num_epochs"] == 5

    succeeded(laboratory, resumed(laboratory, study, max_trials=2))
    trials = laboratory.trials(study)
    assert laboratory.jobs.spec(trials[1].id)["train"]["num_epochs"] == 5
    assert len(laboratory.starts(only)) == 2
    with pytest.raises(InvalidRequest, match="compared at 5 epochs"):
        resumed(laboratory, study, 7)


def test_when_its_trial_fails_it_fails_with_that_cause_and_a_resume_tries_the_same_trial_again(laboratory: Any) -> None:
    laboratory.behave(fail_all=True)
    study = start(laboratory)
    ended, only = laboratory.finish(study), laboratory.trials(study)[0]
    only = laboratory.jobs.get(only.id)
    assert ended.state is JobState.FAILED
    assert (ended.message, ended.error_code) == (only.message, only.error_code)
    found = laboratory.result(study)
    assert (found["winner"], found["final"]) == (None, None)
    assert [(failure["trial"], failure["job_id"]) for failure in found["failures"]] == [(0, only.id)]
    assert "train begins" in laboratory.jobs.logs(study.id).lines
    assert shown_trial(laboratory.jobs.store, study, laboratory.jobs.results_dir(study.id)) == only.id

    laboratory.behave()
    succeeded(laboratory, resumed(laboratory, study))
    assert sorted(laboratory.trials(study)) == [0]
    assert len(laboratory.starts(only)) == 2
    assert laboratory.result(study)["winner"]["job_id"] == only.id


def test_without_any_metric_it_has_failed_and_does_not_count_as_zero(laboratory: Any) -> None:
    laboratory.behave(silent=True)
    study = start(laboratory)
    ended = laboratory.finish(study)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "no_winner")
    (line,) = laboratory.result(study)["trials"]
    assert (line["status"], line["metric"]) == ("failed", None)
    assert "mIoU" in line["cause"]


def test_when_its_trial_is_cancelled_by_hand_so_is_the_study_and_both_go_on_together(laboratory: Any) -> None:
    laboratory.behave(epoch_s=0.4)
    study = start(laboratory, epochs=6)
    only = laboratory.until(lambda: laboratory.trials(study).get(0), "its trial")
    laboratory.until(lambda: laboratory.jobs.store.series.epochs(only.id), "its first epoch")
    laboratory.jobs.cancel(only.id)
    assert laboratory.finish(study).state is JobState.CANCELLED
    assert laboratory.jobs.parent(study.id).job_id == only.id  # what it reached can be used
    laboratory.behave()
    succeeded(laboratory, resumed(laboratory, study))
    assert laboratory.result(study)["trials"][0]["epochs"] == 6
    assert len(laboratory.starts(only)) == 2


def test_a_killed_supervisor_and_a_lost_machine_change_nothing(laboratory: Any) -> None:
    laboratory.behave(epoch_s=0.5)
    study = start(laboratory, epochs=100)  # under way for most of a minute, unless it is lost
    only = laboratory.until(lambda: laboratory.trials(study).get(0), "its trial")
    laboratory.until(lambda: laboratory.jobs.store.series.epochs(only.id), "its first epoch")
    laboratory.kill_supervisor(study)
    laboratory.until(lambda: len(laboratory.jobs.get(study.id).metrics) and laboratory.processes(), "a successor")
    laboratory.lose_the_machine()
    laboratory.behave()
    succeeded(laboratory, laboratory.finish(study))
    assert sorted(laboratory.trials(study)) == [0]
    assert laboratory.result(study)["trials"][0]["epochs"] == 100
    assert laboratory.jobs.attempts(only.id)[-1].resume_epoch is not None
    assert not (laboratory.jobs.results_dir(only.id) / "train" / "TWO_TRAINERS").exists()
