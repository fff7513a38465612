"""A supervisor that dies before the first trial, after the last, while it stops, or with a bigger budget: whoever
follows it comes to the same end. Its dying among the trials is in test_crash_points.py; here whole supervisors run,
without a process of their own, and leave behind what one killed at that write would leave.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.automl import pictures, result, resume, retention
from mask2former_mcp.automl.supervisor import StudySupervisor
from mask2former_mcp.jobs.checkpoints import saved
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.members import members
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import AutomlSettings

pytestmark = pytest.mark.timeout(280)
EPOCHS = 2
MACHINE = Machine(gpus=0, gpu_memory_gb=None, cpus=2, memory_gb=8.0)
Told = Callable[[Job], None]


class PlayedSupervisor(StudySupervisor):
    """Its trials are played, an epoch each time that it would look after orphans."""

    def __init__(self, laboratory: Any, study_id: str) -> None:
        super().__init__(laboratory.played())
        self.study_id = study_id
        self.looks = 0

    def _look_after_orphans(self) -> None:
        self.looks += 1
        assert self.looks < 100, "the study does not end"
        self.jobs.play(self.study_id)

    def watched(self, monkeypatch: pytest.MonkeyPatch, before: Told) -> None:
        """`before` is told the study as it stands, before each thing that the supervisor writes anywhere."""
        for place, names in (
            (self.store, ("transition", "update")),
            (self.jobs, ("submit", "cancel", "resume")),
            (result, ("write",)),
            (retention, ("keep_only",)),
            (pictures, ("draw",)),
        ):
            for name in names:
                monkeypatch.setattr(place, name, self._telling(getattr(place, name), before))

    def _telling(self, write: Any, before: Told) -> Any:
        def telling(*values: Any, **named: Any) -> Any:
            before(self.store.get(self.study_id))
            return write(*values, **named)

        return telling


class Stage:
    """A laboratory whose supervisors leave a copy of the home at each write that `is_kept` names."""

    def __init__(self, laboratory: Any, folder: Path, *, trials: int = 2) -> None:
        self.laboratory, self.folder = laboratory, folder
        laboratory.with_settings(poll_s=0.0)
        weights = folder / "weights.pth"
        weights.write_bytes(b"weights")
        jobs = laboratory.played()
        request = {"checkpoint": str(weights)}
        plan = laboratory.plan(epochs=EPOCHS, max_trials=trials, algorithm="random", request=request)
        self.study: Job = jobs.submit(plan)
        jobs.close()

    def resumed(self, num_epochs: int | None = None, automl: AutomlSettings | None = None) -> None:
        jobs = self.laboratory.played()
        jobs.resume(self.study.id, study=resume.changes(jobs.store.get(self.study.id), num_epochs, automl, MACHINE))
        jobs.close()

    def followed(self, watch: Callable[[PlayedSupervisor], None] = lambda _: None) -> None:
        """One supervisor's life, to the end of the study."""
        supervisor = PlayedSupervisor(self.laboratory, self.study.id)
        watch(supervisor)
        supervisor.run(self.study.id)
        supervisor.jobs.close()

    def left_at(self, monkeypatch: pytest.MonkeyPatch, is_kept: Callable[[Job], bool]) -> list[Path]:
        """A whole life; the home as it was at each write."""
        home, left = self.laboratory.settings.home, list[Path]()

        def keep(study: Job) -> None:
            if is_kept(study):
                left.append(Path(shutil.copytree(home, self.folder / f"left-{time.monotonic_ns()}")))

        with monkeypatch.context() as patch:
            self.followed(lambda supervisor: supervisor.watched(patch, keep))
        return left

    def successors_tell(self, left: list[Path], expected: dict[str, Any]) -> None:
        for number, home in enumerate(left):
            self.laboratory.settings = replace(self.laboratory.settings, home=home)
            self.followed()
            assert self.story() == expected, f"killed at write {number} of {len(left)}"

    def story(self) -> dict[str, Any]:
        """All that must not depend on who followed the study, and how often."""
        jobs = self.laboratory.played()
        found = result.read(jobs.results_dir(self.study.id)) or {}
        children = sorted(members(jobs.store, self.study.id), key=lambda job: job.run_name or "")
        folders = {job.run_name: jobs.results_dir(job.id) / "train" for job in children}
        story = {
            "state": jobs.store.get(self.study.id).state,
            "jobs": [(job.run_name, job.action, job.state) for job in children],
            "trials": [(t["trial"], t["status"], t["parameters"], t["metric"]) for t in found["trials"]],
            "winner": found["winner"] and [found["winner"][key] for key in ("trial", "metric", "epoch")],
            "measured": [(found[n] or {}).get("metrics") for n in ("baseline", "final")],
            "pictures": found["pictures"],
            "kept": {name: [c.epoch for c in saved(folder)] for name, folder in folders.items()},
            "starts": [len(jobs.store.history.attempts(job.id)) for job in children],
        }
        jobs.close()
        return story


@pytest.fixture
def stage(laboratory: Any, tmp_path: Path) -> Stage:
    return Stage(laboratory, tmp_path)


def is_beside_the_trials(study: Job) -> bool:
    return study.state is not JobState.RUNNING or "trials ended" not in study.phase


def test_killed_before_the_first_trial_or_after_the_last_a_study_comes_to_the_same_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = stage.left_at(monkeypatch, is_beside_the_trials)
    expected = stage.story()
    assert expected["state"] is JobState.SUCCEEDED
    assert expected["measured"] == [{"mIoU": 0.5}] * 2
    assert [action for _, action, _ in expected["jobs"]] == ["evaluate", "evaluate", "train", "train"]
    assert expected["starts"] == [1, 1, 1, 1]
    stage.successors_tell(left, expected)


def test_killed_while_it_stops_a_study_is_cancelled_with_all_its_members(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancelled(study: Job) -> bool:
        """At the first epoch of trial 0 somebody cancels; from then on every write is kept."""
        jobs = stage.laboratory.played()
        trials = [job for job in members(jobs.store, study.id) if job.trial == 0]
        if study.state is JobState.RUNNING and trials and jobs.store.series.epochs(trials[0].id):
            jobs.cancel(study.id)
        jobs.close()
        return study.state is JobState.STOPPING

    left = stage.left_at(monkeypatch, cancelled)
    expected = stage.story()
    assert expected["state"] is JobState.CANCELLED
    assert expected["trials"][0][:2] == (0, "stopped")
    assert len(left) > 2
    stage.successors_tell(left, expected)


def test_killed_with_a_bigger_budget_a_resumed_study_has_the_same_trials(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.followed()
    stage.resumed(automl=AutomlSettings(max_trials=3))
    left = stage.left_at(monkeypatch, lambda _: True)[::2]
    expected = stage.story()
    assert [trial for trial, *_ in expected["trials"]] == [0, 1, 2]
    assert set(expected["starts"]) == {1}
    stage.successors_tell(left, expected)


def test_killed_at_any_write_a_study_of_one_trial_comes_to_the_same_end_trains_on_and_becomes_a_search(
    laboratory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(laboratory, tmp_path, trials=1)
    home = laboratory.settings.home

    def whole_life() -> dict[str, Any]:
        laboratory.settings = replace(laboratory.settings, home=home)
        left = stage.left_at(monkeypatch, lambda _: True)[::2]
        expected = stage.story()
        stage.successors_tell(left, expected)
        laboratory.settings = replace(laboratory.settings, home=home)
        return expected

    first = whole_life()
    names = [name.removeprefix(f"{stage.study.id}-") for name, *_ in first["jobs"]]
    assert names == ["baseline", "final-0-1", "trial-0"]
    assert (first["state"], first["starts"]) == (JobState.SUCCEEDED, [1, 1, 1])
    stage.resumed(num_epochs=EPOCHS + 1)
    longer = whole_life()
    assert (longer["winner"][2], longer["starts"]) == (EPOCHS, [1, 1, 1, 2])
    stage.resumed(automl=AutomlSettings(max_trials=2))
    assert [trial for trial, *_ in whole_life()["trials"]] == [0, 1]
