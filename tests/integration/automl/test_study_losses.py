"""The machine goes away under a study, or the study is given up: what ran is found again, or stopped when asked."""

from typing import Any

import pytest

from mask2former_mcp.jobs.job import LIVE, JobState

pytestmark = pytest.mark.timeout(240)


def test_after_the_machine_went_away_the_study_goes_on_and_only_what_was_cut_off_runs_again(laboratory: Any) -> None:
    laboratory.behave(epoch_s=0.25)
    study = laboratory.start(max_trials=2, epochs=6, algorithm="random")
    second = laboratory.until(lambda: laboratory.trials(study).get(1), "the second trial")
    laboratory.until(lambda: len(laboratory.jobs.store.series.epochs(second.id)) >= 2, "its second epoch")
    laboratory.lose_the_machine()
    laboratory.behave()
    assert study.id in laboratory.jobs.reconcile()
    ended = laboratory.finish(study)
    assert ended.state is JobState.SUCCEEDED, ended.message + laboratory.log(study)
    trials = laboratory.trials(study)
    assert sorted(trials) == [0, 1]
    assert [len(laboratory.starts(trials[number])) for number in (0, 1)] == [1, 2]
    first, again = laboratory.jobs.attempts(second.id)
    assert (first.resume_epoch, again.resume_epoch is not None) == (None, True)
    assert [list(laboratory.jobs.store.series.epochs(trials[number].id)) for number in (0, 1)] == [list(range(6))] * 2
    assert [line["status"] for line in laboratory.result(study)["trials"]] == ["finished", "finished"]


def test_a_lost_study_is_resumed_with_its_running_trial_adopted_or_cancelled_as_a_whole(laboratory: Any) -> None:
    laboratory.behave(epoch_s=0.4)
    study = laboratory.start(max_trials=2, epochs=8, algorithm="random")
    running = laboratory.until(lambda: laboratory.trials(study).get(0), "the first trial")
    laboratory.until(lambda: laboratory.jobs.store.series.epochs(running.id), "its first epoch")
    lose(laboratory, study)
    laboratory.jobs.resume(study.id, study={})
    laboratory.until(lambda: laboratory.jobs.store.get(study.id).state is JobState.RUNNING, "the study to go on")
    assert len(laboratory.starts(running)) == 1, "it was adopted, not started again"
    lose(laboratory, study)
    laboratory.jobs.cancel(study.id)
    laboratory.until(lambda: laboratory.jobs.get(running.id).state.terminal, "the trial of the lost study to end")
    assert laboratory.jobs.get(running.id).state is JobState.CANCELLED
    assert not [process for process in laboratory.processes() if "trial_engine" in " ".join(process.cmdline())]
    # It stopped with its study, so it goes on with it.
    laboratory.behave()
    laboratory.jobs.resume(study.id, study={})
    assert laboratory.finish(study).state is JobState.SUCCEEDED
    assert [line["status"] for line in laboratory.result(study)["trials"]] == ["finished", "finished"]
    assert laboratory.trials(study)[0].id == running.id
    assert len(laboratory.starts(running)) == 2


def lose(laboratory: Any, study: Any) -> None:
    """As reconcile does after the fifth supervisor that got nowhere; each of them writes with its attempt only."""
    laboratory.kill_supervisor(study)
    store = laboratory.jobs.store
    attempt = store.get(study.id).attempt
    store.history.end(study.id, attempt, JobState.LOST, None)
    assert store.transition(study.id, JobState.LOST, expect=LIVE, attempt=attempt, text="lost", message="lost")
