"""A home of its own, an engine that is a small script, and plans for it. Every process that a test leaves is ended."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
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


def make_plan(action: str = "train", *, epochs: int = 3, automl: str = "direct", **changes: Any) -> Plan:
    fake = changes.pop("fake", {})
    section: dict[str, Any] = {"num_gpus": 1, "gpu_ids": [0]}
    if action == "train":
        section |= {"num_epochs": epochs, "validation_interval": 1, "resume_training_checkpoint_path": ""}
    fields: dict[str, Any] = {
        "action": action,
        "automl": AutomlDecision(policy="off", route=automl, source="argument", reason="test"),
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


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        engine_command=(sys.executable, str(FAKE_ENGINE)),
        gpus="none",
        cancel_grace_s=2.0,
        poll_s=0.05,
    )


@pytest.fixture
def environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("M2F_")}


@pytest.fixture
def jobs(settings: Settings, environ: dict[str, str]) -> Iterator[Jobs]:
    service = Jobs(settings, environ)
    yield service
    service.close()
    end_everything(settings.home)


def end_everything(home: Path) -> None:
    """Kill supervisors and engines of this home, found by their environment."""
    for process in psutil.process_iter():
        try:
            values = process.environ()
        except psutil.Error:
            continue
        if process.pid != os.getpid() and (
            values.get("M2F_HOME") == str(home) or values.get("M2F_RUN", "").startswith(str(home))
        ):
            process.kill()


def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for: {what}"
        time.sleep(0.02)
    return value


def in_state(jobs: Jobs, job: Job, *states: JobState, timeout_s: float = 20.0) -> Job:
    return until(lambda: found if (found := jobs.store.get(job.id)).state in states else None, f"{states}", timeout_s)


def finished(jobs: Jobs, job: Job, timeout_s: float = 20.0) -> Job:
    ended = jobs.wait(job.id, timeout_s)
    assert ended.state.terminal, f"still {ended.state} ({ended.phase})\n{supervisor_log(jobs, job)}"
    return ended


def supervisor_log(jobs: Jobs, job: Job) -> str:
    path = jobs.settings.home / "jobs" / job.id / "supervisor.log"
    return path.read_text() if path.exists() else ""


def results(jobs: Jobs, job: Job) -> Path:
    return jobs.results_dir(job.id) / job.action


def started(jobs: Jobs, job: Job) -> list[int]:
    """Pids of the engine processes that ran for this job."""
    path = results(jobs, job) / "starts.txt"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def kill_supervisor(jobs: Jobs, job: Job) -> None:
    identity = jobs.store.get(job.id).supervisor
    assert identity is not None
    os.kill(identity["pid"], signal.SIGKILL)
