"""kill -9 of a study's supervisor at every stage: the same trials, none twice, the same winner."""

from typing import Any

import pytest

from mask2former_mcp.jobs.job import JobState

pytestmark = pytest.mark.timeout(240)


def story(laboratory: Any, study: Any) -> list[tuple[Any, ...]]:
    found = laboratory.result(study)
    lines = [(t["trial"], t["status"], t["parameters"]) for t in found["trials"]]
    return [*lines, ("winner", found["winner"]["trial"], found["winner"]["metric"])]


def test_a_supervisor_killed_at_every_stage_changes_neither_trials_nor_winner(laboratory: Any) -> None:
    laboratory.behave(epoch_s=0.12)
    undisturbed = laboratory.start(max_trials=3)
    assert laboratory.finish(undisturbed).state is JobState.SUCCEEDED

    study = laboratory.start(max_trials=3)
    trials = lambda: laboratory.trials(study)  # noqa: E731
    stages = [
        ("at the very start", lambda: laboratory.jobs.store.get(study.id).supervisor),
        ("while trial 0 trains", lambda: 0 in trials() and laboratory.starts(trials()[0])),
        ("when trial 1 was submitted", lambda: 1 in trials()),
        ("while trial 2 trains", lambda: 2 in trials() and laboratory.starts(trials()[2])),
    ]
    for stage, reached in stages:
        # Looking at a job is what gives it a new supervisor; waiting on the files alone would revive nothing.
        laboratory.until(lambda now=reached: laboratory.jobs.get(study.id) and now(), stage)
        laboratory.kill_supervisor(study)
    ended = laboratory.finish(study)
    assert ended.state is JobState.SUCCEEDED, ended.message + laboratory.log(study)
    assert story(laboratory, study) == story(laboratory, undisturbed)
    for job in laboratory.trials(study).values():
        assert len(laboratory.starts(job)) == 1
        assert not (laboratory.jobs.results_dir(job.id) / "train" / "TWO_TRAINERS").exists()
