"""A laboratory: a home, a tiny data set, real planning and real jobs around an engine that answers in a blink."""

import contextlib
import json
import math
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mask2former_mcp import bundle
from mask2former_mcp.automl import leaderboard, result
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.ending import Evaluations
from mask2former_mcp.automl.planner import StudyPlanner
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.automl.search import Search
from mask2former_mcp.automl.view import StudyView
from mask2former_mcp.demo import scenes
from mask2former_mcp.jobs.checkpoints import newest_intact
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import LIVE, Job, JobState
from mask2former_mcp.jobs.members import members
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import AutomlSettings, TrainRequest
from mask2former_mcp.settings import Settings
from mask2former_mcp.spec import dotted

ENGINE = Path(__file__).with_name("trial_engine.py")
PATIENCE_S = 90.0


class PlayedJobs(Jobs):
    """Real rows in a real store; submitting starts no process, `play` trains every live trial for one epoch."""

    def _start(self, job: Job) -> Job:
        return job

    def _followed(self, job: Job) -> Job:
        return job

    def reconcile(self) -> Sequence[str]:
        return ()

    def play(self, study_id: str) -> None:
        for job in self.store.list(study_id=study_id, states=LIVE)[0]:
            if job.id != study_id:
                self._train(job)

    def _train(self, job: Job) -> None:
        if job.state is JobState.STOPPING:
            self._end(job, JobState.CANCELLED, "stopped")
            return
        folder = self.results_dir(job.id) / "train"
        if self.store.transition(job.id, JobState.RUNNING, expect=(JobState.QUEUED,), text="runs"):
            kept = newest_intact(folder).epoch if job.attempt > 1 else None
            self.store.history.begin(job.id, job.attempt, resumed_from=None, resume_epoch=kept, status_offset=0)
        if job.action == "evaluate":
            self.store.update(job.id, job.attempt, metrics={"mIoU": 0.5})
            self._end(job, JobState.SUCCEEDED, "measured")
            return
        epoch, epochs = len(self.store.series.epochs(job.id)), self.spec(job.id)["train"]["num_epochs"]
        if epoch < epochs:  # killed in between, it has trained them all and not said so
            rate = job.plan.spec["train"]["optim"]["lr"]
            top = 0.8 * math.exp(-((math.log10(rate / 2e-3)) ** 2))
            measured = {"mIoU": top * (1 - math.exp(-3 * (epoch + 1) / epochs))}
            self.store.series.write(job.id, job.attempt, epoch, measured)
            folder.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(folder / f"model_epoch_{epoch:03d}_step_{epoch:05d}.pth", "w") as archive:
                archive.writestr("archive/data.pkl", b"weights")
        if epoch + 1 >= epochs:
            self._end(job, JobState.SUCCEEDED, "done")

    def _end(self, job: Job, state: JobState, text: str) -> None:
        self.store.history.end(job.id, job.attempt, state, 0)
        self.store.transition(job.id, state, expect=LIVE, text=text)


class Laboratory:
    def __init__(self, folder: Path, data: Path) -> None:
        self.data = data
        self.behaviour = folder / "behaviour.json"
        self.behave()
        self.settings = Settings(
            home=folder / "home",
            engine_command=(sys.executable, str(ENGINE), str(self.behaviour)),
            gpus="none",
            cancel_grace_s=2.0,
            poll_s=0.15,
        )
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("M2F_")}
        self.jobs = Jobs(self.settings, self.environ)

    def behave(self, **behaviour: Any) -> None:
        temporary = self.behaviour.with_suffix(".new")
        temporary.write_text(json.dumps(behaviour))
        temporary.replace(self.behaviour)

    def played(self) -> PlayedJobs:
        return PlayedJobs(self.settings, self.environ)

    def planner(self, gpus: int = 0) -> Planner:
        machine = Machine(gpus=gpus, gpu_memory_gb=24.0 if gpus else None, cpus=2, memory_gb=8.0)
        return Planner(bundle.load(), self.settings, self.jobs, machine, self.environ)

    def plan(self, *, epochs: int = 9, gpus: int = 0, request: dict[str, Any] | None = None, **automl: Any) -> Plan:
        said = {"max_trials": 4, "seed": 3, **automl}
        asked: dict[str, Any] = {
            "train_dataset": str(self.data), "preset": "mini", "num_epochs": epochs,
            "overrides": {"dataset.train.batch_size": 2}, "automl": AutomlSettings(**said), **(request or {}),
        }  # fmt: skip
        return StudyPlanner(self.planner(gpus)).plan(TrainRequest(**asked))

    def start(self, **changes: Any) -> Job:
        return self.jobs.submit(self.plan(**changes))

    def finish(self, study: Job) -> Job:
        ended = self.jobs.wait(study.id, PATIENCE_S)
        assert ended.state.terminal, f"still {ended.state} ({ended.phase})\n{self.log(study)}"
        return ended

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {PATIENCE_S} s in vain for: {what}"
            time.sleep(0.02)
        return value

    def result(self, study: Job) -> dict[str, Any]:
        found = result.read(self.jobs.results_dir(study.id))
        assert found is not None, self.log(study)
        return found

    def trials(self, study: Job) -> dict[int, Job]:
        found = members(self.jobs.store, study.id)
        numbers = [job.trial for job in found if job.trial is not None]
        assert len(numbers) == len(set(numbers)), "a trial number was used twice"
        return {job.trial: job for job in found if job.trial is not None}

    def starts(self, job: Job) -> list[int]:
        path = self.jobs.results_dir(job.id) / job.action / "starts.txt"
        return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []

    def spans(self, job: Job) -> list[tuple[float, float]]:
        """When the engine of a job ran."""
        folder = self.jobs.results_dir(job.id) / job.action
        began, ended = (
            [float(line.split()[1]) for line in (folder / name).read_text().splitlines()]
            for name in ("starts.txt", "ends.txt")
        )
        return list(zip(began, ended, strict=True))

    def devices(self, job: Job) -> list[str]:
        """What each engine of a job saw of the machine's GPUs."""
        path = self.jobs.results_dir(job.id) / job.action / "starts.txt"
        return [line.split()[2] for line in path.read_text().splitlines()]

    def pretend_gpus(self, *uuids: str) -> None:
        """From now on a driver lists these."""
        folder = self.behaviour.with_name("bin")
        folder.mkdir()
        lines = "".join(f"{index}, {uuid}, Pretended, 24576\n" for index, uuid in enumerate(uuids))
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
        (folder / "nvidia-smi").chmod(0o755)
        self.environ["PATH"] = f"{folder}{os.pathsep}{self.environ['PATH']}"
        self.with_settings(gpus="auto")

    def kill_supervisor(self, study: Job) -> None:
        identity = self.jobs.store.get(study.id).supervisor
        assert identity is not None
        os.kill(int(identity["pid"]), signal.SIGKILL)
        self.until(lambda: not runs(int(identity["pid"])), "the supervisor to be dead")

    def log(self, study: Job) -> str:
        path = self.settings.home / "jobs" / study.id / "supervisor.log"
        return path.read_text() if path.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Supervisors, launchers and engines of this home."""
        home, found = str(self.settings.home), []
        for process in psutil.process_iter():
            try:
                values = process.environ()
            except psutil.Error:
                continue
            if values.get("M2F_HOME") == home or values.get("M2F_RUN", "").startswith(home):
                found.append(process)
        return found

    def lose_the_machine(self) -> None:
        """Everything killed at once: frozen first, so that nobody sees how another one ended."""
        victims = self.processes()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        self.until(lambda: not any(runs(process.pid) for process in victims), "all processes to be dead")

    def close(self) -> None:
        self.jobs.close()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def with_settings(self, **changes: Any) -> None:
        self.jobs.close()
        self.settings = replace(self.settings, **changes)
        self.jobs = Jobs(self.settings, self.environ)


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
        (found,) = [job for job in members(self.jobs.store, self.study.id) if job.trial == number]
        return found

    def trained(self) -> dict[int, int]:
        """Trial -> epochs that were really trained, over all attempts."""
        jobs = members(self.jobs.store, self.study.id)
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


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.make(tmp_path_factory.mktemp("scenes"), train=6, val=2, test=1, size=64, workers=1)


@pytest.fixture
def laboratory(tmp_path: Path, few_images: Path) -> Iterator[Laboratory]:
    laboratory = Laboratory(tmp_path, few_images)
    yield laboratory
    laboratory.close()


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
