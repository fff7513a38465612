"""What is stopped before its end: a weak trial, a cancelled study, one whose time is up; and what goes on later."""

import time
from typing import Any

import psutil
import pytest

from mask2former_mcp.automl import resume
from mask2former_mcp.errors import InvalidRequest, WrongState
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import AutomlSettings

pytestmark = pytest.mark.timeout(180)
SECONDS = 5.0  # from the epoch that loses at a rung to the end of the process; the trial would have run eight more
MACHINE = Machine(gpus=0, gpu_memory_gb=None, cpus=2, memory_gb=8.0)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_weak_trials_are_stopped_at_a_rung_and_their_processes_are_gone_within_seconds(laboratory: Any) -> None:
    # The plain run is the best there can be, so every other trial loses at its first rung.
    laboratory.behave(best_lr=2e-3, epoch_s=1.0)
    study = laboratory.start(
        max_trials=2, algorithm="asha", search_space={"train.optim.lr": {"min": 0.02, "max": 0.05, "log": True}}
    )
    pruned = laboratory.until(lambda: laboratory.trials(study).get(1), "the second trial")
    (process,) = laboratory.until(lambda: laboratory.starts(pruned), "its process")
    laboratory.until(lambda: laboratory.jobs.store.series.epochs(pruned.id), "its first epoch")
    measured = time.monotonic()
    laboratory.until(lambda: not runs(process), "the end of its process")
    assert time.monotonic() - measured < SECONDS
    laboratory.until(lambda: laboratory.jobs.store.get(pruned.id).state.terminal, "its end")
    assert len(laboratory.jobs.store.series.epochs(pruned.id)) < 9
    assert len(laboratory.spans(pruned)) == 1
    assert laboratory.finish(study).state is JobState.SUCCEEDED
    line = laboratory.result(study)["trials"][1]
    assert line["status"] == "pruned"
    assert "rung" in line["cause"]
    assert laboratory.result(study)["winner"]["trial"] == 0


def test_cancelling_a_study_stops_its_trials_and_resuming_goes_on_with_them(laboratory: Any) -> None:
    laboratory.behave(epoch_s=0.4)
    study = laboratory.start(max_trials=2, epochs=5)
    first = laboratory.until(lambda: laboratory.trials(study).get(0), "the first trial")
    laboratory.until(lambda: laboratory.jobs.store.series.epochs(first.id), "its first epoch")
    with pytest.raises(WrongState):
        laboratory.jobs.delete(study.id)
    laboratory.jobs.cancel(study.id)
    assert laboratory.finish(study).state is JobState.CANCELLED
    assert laboratory.jobs.get(first.id).state is JobState.CANCELLED
    # What it came to so far is told, and can be used.
    (line,) = laboratory.result(study)["trials"]
    assert (line["status"], line["cause"]) == ("stopped", "cancelled with the study, before its last epoch")
    assert laboratory.jobs.parent(study.id).job_id == first.id
    laboratory.behave()
    cancelled = laboratory.jobs.get(study.id)
    ended = laboratory.finish(laboratory.jobs.resume(study.id, study=resume.changes(cancelled, None, None, MACHINE)))
    assert ended.state is JobState.SUCCEEDED, ended.message + laboratory.log(study)
    trials = laboratory.trials(study)
    assert sorted(trials) == [0, 1]
    assert trials[0].id == first.id
    assert len(laboratory.starts(first)) == 2
    assert laboratory.result(study)["trials"][0]["status"] == "finished"


def test_what_the_time_budget_cut_off_a_resume_with_more_time_finishes(laboratory: Any) -> None:
    laboratory.behave(epoch_s=1.5)
    study = laboratory.start(max_trials=2, epochs=20, algorithm="random", time_budget_minutes=0.25)
    ended = laboratory.finish(study)
    assert ended.state is JobState.SUCCEEDED, ended.message + laboratory.log(study)
    assert 'resume_job with automl={"time_budget_minutes": ..}' in ended.message
    (line,) = laboratory.result(study)["trials"]
    assert (line["status"], laboratory.result(study)["winner"]["trial"]) == ("stopped", 0)
    assert "time budget" in line["cause"]
    first, trained = laboratory.trials(study)[0], line["epochs"]
    with pytest.raises(InvalidRequest, match="used its budget of 2 trials or") as refused:
        resume.changes(ended, None, None, MACHINE)
    assert "time_budget_minutes" in refused.value.fix
    laboratory.behave()
    more = resume.changes(ended, None, AutomlSettings(time_budget_minutes=5.0), MACHINE)
    assert laboratory.finish(laboratory.jobs.resume(study.id, study=more)).state is JobState.SUCCEEDED
    found = laboratory.result(study)
    assert [(t["trial"], t["status"], t["epochs"]) for t in found["trials"]] == [
        (0, "finished", 20),
        (1, "finished", 20),
    ]
    assert laboratory.trials(study)[0].id == first.id
    assert laboratory.jobs.attempts(first.id)[1].resume_epoch >= trained - 1
    assert found["final"]["status"] == "succeeded"
    assert found["budget"]["epochs_trained"] == 40
