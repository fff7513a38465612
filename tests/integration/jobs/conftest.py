"""A bench: a home of its own, an engine that is a small script, plans for it, and bounded waits."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import AutomlDecision, Estimate, Plan
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.settings import Settings

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
ARTIFACTS = {"train": ("train/model_epoch_*.pth",), "evaluate": ("evaluate/status.json",), "export": ("export/*.onnx",)}
PATIENCE_S = 25.0


class Bench:
    """One home, several services on it if a test wants them. `close` ends every process that was started here."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(
            home=home,
            engine_command=(sys.executable, str(FAKE_ENGINE)),
            gpus="none",
            cancel_grace_s=2.0,
            poll_s=0.05,
        )
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("M2F_")}
        self._open: list[Jobs] = []

    def jobs(self, environ: dict[str, str] | None = None, **settings: Any) -> Jobs:
        service = Jobs(replace(self.settings, **settings), self.environ | (environ or {}))
        self._open.append(service)
        return service

    def close(self) -> None:
        for service in self._open:
            service.close()
        home = str(self.settings.home)
        for process in psutil.process_iter():
            try:
                values = process.environ()
            except psutil.Error:
                continue
            if values.get("M2F_HOME") == home or values.get("M2F_RUN", "").startswith(home):
                process.kill()

    def plan(self, action: str = "train", *, epochs: int = 3, route: str = "direct", **changes: Any) -> Plan:
        fake = changes.pop("fake", {})
        section: dict[str, Any] = {"num_gpus": 1, "gpu_ids": [0]}
        if action == "train":
            section |= {"num_epochs": epochs, "validation_interval": 1, "resume_training_checkpoint_path": ""}
        fields: dict[str, Any] = {
            "action": action,
            "automl": AutomlDecision(policy="off", route=route, source="argument", reason="test"),
            "spec_overrides": {},
            "spec": {"results_dir": "{results_dir}", action: section, "fake": fake},
            "command": ("mask2former", action, "-e", "{job_dir}/spec.yaml"),
            "image": None,
            "platform": "local",
            "runtime": "engine",
            "estimate": Estimate(gpus=0, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="table"),
            "digest": "d" * 64,
            "artifacts": ARTIFACTS.get(action, ()),
        }
        return Plan(**{**fields, **changes})

    def unfollowed(self, jobs: Jobs, **changes: Any) -> Job:
        """A queued job, as it stands before its supervisor is started."""
        name = f"train-{len(jobs.list()[0])}"
        job, _ = jobs.store.insert(
            Job(
                id=name,
                action="train",
                state=JobState.QUEUED,
                plan=self.plan(**changes),
                created_at=time.time(),
                results_dir=f"jobs/{name}/results",
            )
        )
        self.job_dir(job).mkdir(parents=True)
        return job

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {PATIENCE_S} s in vain for: {what}"
            time.sleep(0.02)
        return value

    def reach(self, jobs: Jobs, job: Job, *states: JobState) -> Job:
        """Wait on the store alone, which revives nothing."""

        def there() -> Job | None:
            found = jobs.store.get(job.id)
            return found if found.state in states else None

        found: Job = self.until(there, f"{job.id} to be {' or '.join(states)}")
        return found

    def finish(self, jobs: Jobs, job: Job) -> Job:
        ended = jobs.wait(job.id, PATIENCE_S)
        assert ended.state.terminal, f"still {ended.state} ({ended.phase})\n{self.supervisor_log(job)}"
        return ended

    def hang(self, jobs: Jobs, **changes: Any) -> Job:
        """A training that has written two checkpoints and then sits in its third epoch."""
        fake = {"hang_at": 1, **changes.pop("fake", {})}
        job = jobs.submit(self.plan(fake=fake, **changes))
        self.until((self.folder(jobs, job) / "hanging").exists, "the engine to hang")
        self.until(lambda: len(jobs.store.series.epochs(job.id)) == 2, "two epochs in the store")
        return jobs.store.get(job.id)

    def folder(self, jobs: Jobs, job: Job) -> Path:
        return jobs.results_dir(job.id) / job.action

    def job_dir(self, job: Job) -> Path:
        return self.settings.home / "jobs" / job.id

    def starts(self, jobs: Jobs, job: Job) -> list[int]:
        """Pids of the engine processes that ran for this job."""
        path = self.folder(jobs, job) / "starts.txt"
        return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []

    def never_two(self, jobs: Jobs, job: Job) -> bool:
        return not (self.folder(jobs, job) / "TWO_TRAINERS").exists()

    def supervisor(self, jobs: Jobs, job: Job) -> int:
        identity = jobs.store.get(job.id).supervisor
        assert identity is not None
        return int(identity["pid"])

    def supervisor_log(self, job: Job) -> str:
        path = self.job_dir(job) / "supervisor.log"
        return path.read_text() if path.exists() else ""

    def kill(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.until(lambda: not any(self.runs(pid) for pid in pids), f"{pids} to be dead")

    def runs(self, pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "home")
    yield bench
    bench.close()


@pytest.fixture
def jobs(bench: Bench) -> Jobs:
    return bench.jobs()
