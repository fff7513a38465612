"""A supervisor that dies between any two writes: its successor makes the same study of it.

The jobs are real rows in a real store and the search is real Optuna; only the trainers are played here, one epoch per
look, so that every single write can be the last one.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.automl.search import Search
from mask2former_mcp.jobs.job import Job
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.spec import dotted

pytestmark = pytest.mark.timeout(280)
EPOCHS = 3
Told = Callable[[int], None]


class Killed(BaseException):
    """No handler may catch it: that is what kill -9 is like."""


class Writes:
    """A supervisor's writes, counted from 1; `before` and `after` are told the number of each."""

    def __init__(self, before: Told = lambda _: None, after: Told = lambda _: None) -> None:
        self.before, self.after = before, after
        self.seen = 0

    def watch(self, target: Any, names: Sequence[str]) -> None:
        for name in names:
            setattr(target, name, self._watched(getattr(target, name)))

    def _watched(self, write: Any) -> Any:
        def watched(*values: Any, **named: Any) -> Any:
            self.seen += 1
            number = self.seen
            self.before(number)
            answer = write(*values, **named)
            self.after(number)
            return answer

        return watched


def killer(last: int, *, after: bool) -> Writes:
    """Dies before or after this write."""

    def kill(number: int) -> None:
        if number == last:
            raise Killed

    return Writes(after=kill) if after else Writes(before=kill)


def lived(laboratory: Any, study: Job, settings: StudySettings, writes: Writes) -> bool:
    """One supervisor's life; whether it saw the end."""
    jobs = laboratory.played()
    folder: Path = laboratory.settings.home / "jobs" / study.id
    folder.mkdir(parents=True, exist_ok=True)
    search = Search(folder, settings, dotted.flatten(study.plan.spec))
    writes.watch(jobs, ("submit", "cancel"))
    writes.watch(search, ("note", "finish", "stop", "fail", "report"))
    writes.watch(search.study, ("ask",))
    running = RunningStudy(study, settings, search, jobs, laboratory.planner(), started_at=0.0, keep_all=False)
    try:
        for _ in range(60):
            if not running.step():
                running.tidy_all()
                return True
            jobs.play(study.id)
    except Killed:
        return False
    finally:
        search.close()
        jobs.close()
    raise AssertionError("the study did not end")


def story(laboratory: Any, study: Job, settings: StudySettings) -> list[tuple[Any, ...]]:
    jobs = laboratory.played()
    search = Search(laboratory.settings.home / "jobs" / study.id, settings, dotted.flatten(study.plan.spec))
    running = RunningStudy(study, settings, search, jobs, laboratory.planner(), started_at=0.0, keep_all=False)
    numbers = [job.trial for job in running.members().values()]
    assert sorted(numbers) == list(range(settings.max_trials)), "a trial is missing or was counted twice"
    records = [
        (r.trial, r.status, r.metric, r.epoch, r.checkpoint, r.parameters) for r in running.records(running.members())
    ]
    search.close()
    jobs.close()
    return records


def begun(laboratory: Any, plan: Plan) -> Job:
    jobs = laboratory.played()
    study = jobs.submit(plan)
    jobs.close()
    return study


@pytest.fixture
def settings(laboratory: Any) -> tuple[Plan, StudySettings]:
    plan = laboratory.plan(epochs=EPOCHS, max_trials=3, algorithm="asha")
    found: Mapping[str, Any] = plan.study
    return plan, StudySettings.model_validate(found)


def test_whatever_write_is_the_last_the_successor_tells_the_same_story(
    laboratory: Any, settings: tuple[Plan, StudySettings], tmp_path: Path
) -> None:
    """One life in full; what it leaves on the disk at each write is what a supervisor killed there leaves behind."""
    plan, study_settings = settings
    study, home = begun(laboratory, plan), laboratory.settings.home
    left: dict[int, Path] = {}

    def keep(number: int) -> None:
        left[number] = Path(shutil.copytree(home, tmp_path / f"left-{number}"))

    writes = Writes(
        before=lambda number: keep(number) if number % 2 else None,
        after=lambda number: None if number % 2 else keep(number),
    )
    assert lived(laboratory, study, study_settings, writes)
    expected = story(laboratory, study, study_settings)
    assert {status for _, status, *_ in expected} == {"finished", "pruned"}
    assert writes.seen > 15
    assert sorted(left) == list(range(1, writes.seen + 1))
    for number, found in left.items():
        laboratory.settings = replace(laboratory.settings, home=found)
        assert lived(laboratory, study, study_settings, Writes())
        assert story(laboratory, study, study_settings) == expected, f"killed at write {number}"


def test_a_supervisor_that_dies_at_every_tenth_write_still_comes_to_the_end(
    laboratory: Any, settings: tuple[Plan, StudySettings]
) -> None:
    plan, study_settings = settings
    undisturbed, study = begun(laboratory, plan), begun(laboratory, plan)
    assert lived(laboratory, undisturbed, study_settings, Writes())
    lives = 1
    while not lived(laboratory, study, study_settings, killer(10, after=lives % 2 == 0)):
        lives += 1
        assert lives < 30
    assert lives > 2
    assert story(laboratory, study, study_settings) == story(laboratory, undisturbed, study_settings)
