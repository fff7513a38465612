"""A store in a fresh home, and the smallest plan."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import AutomlDecision, Estimate, Plan
from mask2former_mcp.jobs.store import JobStore


@pytest.fixture
def plan() -> Plan:
    return Plan(
        action="train",
        automl=AutomlDecision(policy="off", route="direct", source="argument", reason="test"),
        spec_overrides={},
        spec={"results_dir": "{results_dir}", "train": {"num_epochs": 3, "num_gpus": 1, "gpu_ids": [0]}},
        command=("mask2former", "train", "-e", "{job_dir}/spec.yaml"),
        image=None,
        platform="local",
        runtime="engine",
        estimate=Estimate(gpus=0, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="table"),
        digest="d" * 64,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(tmp_path / "home")
    yield store
    store.close()


@pytest.fixture
def add(store: JobStore, plan: Plan) -> Callable[..., Job]:
    """Insert a queued job: add("train-1", created_at=..., run_name=...)."""

    def insert(job_id: str, **fields: Any) -> Job:
        values: dict[str, Any] = {"created_at": 1.0, "results_dir": f"jobs/{job_id}/results", **fields}
        job, _ = store.insert(Job(id=job_id, action="train", state=JobState.QUEUED, plan=plan, **values))
        return job

    return insert
