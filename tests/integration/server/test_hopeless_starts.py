"""Starts that are known to fail: refused with the fix, nothing stored; a dry run shows the Plan and warns."""

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.planning.request import TrainRequest
from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services


def call(services: Services, tool: str, **arguments: Any) -> Any:
    async def ask() -> Any:
        async with Client(build(services, reconcile=False)) as client:
            return await client.call_tool(tool, arguments)

    return anyio.run(ask)


def refusal(services: Services, tool: str, **arguments: Any) -> dict[str, Any]:
    result = call(services, tool, **arguments)
    assert result.is_error, result.structured_content
    assert result.structured_content["code"] == "not_available"
    assert services.jobs.list()[0] == []
    return dict(result.structured_content)


@pytest.fixture
def graph(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"a graph, as far as planning looks")
    return {"onnx_file": str(file)}


def test_a_training_in_containers_needs_a_daemon(environ, tiny_training, tmp_path):
    services = Services({**environ, "DOCKER_HOST": f"unix://{tmp_path / 'nobody.sock'}"})
    asked = {**tiny_training, "platform": "docker"}
    refused = refusal(services, "train", **asked)
    assert "no daemon answers" in refused["message"]
    assert "Start Docker" in refused["fix"]
    assert "doctor(platform='docker')" in refused["fix"]
    plan = call(services, "train", **asked, dry_run=True)
    assert not plan.is_error
    assert any("cannot start yet: no daemon answers" in note for note in plan.structured_content["warnings"])


def test_an_engine_needs_a_gpu(environ, graph):
    services = Services(environ)
    assert "no NVIDIA GPU here" in refusal(services, "gen_trt_engine", **graph)["message"]
    plan = call(services, "gen_trt_engine", **graph, dry_run=True)
    assert any("cannot start yet: gen_trt_engine has no NVIDIA GPU" in w for w in plan.structured_content["warnings"])


def test_an_engine_needs_the_package_that_no_extra_installs(environ, graph, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "0, GPU-a, Some GPU, 81559"\n')
    tool.chmod(0o755)
    services = Services({**environ, "M2F_GPUS": "auto", "PATH": f"{tmp_path}:{environ['PATH']}"})
    refused = refusal(services, "gen_trt_engine", **graph)
    assert "needs the package tensorrt" in refused["message"]
    assert f'{sys.executable} -m pip install "tensorrt<11"' in refused["fix"]


def test_a_start_under_a_known_run_name_says_that_the_job_existed_already(environ, tiny_training):
    services = Services(environ)
    asked = {**tiny_training, "run_name": "belt"}
    plan = services.planner.plan(TrainRequest(**asked))
    queued = Job(id="train-1", action="train", state=JobState.QUEUED, plan=plan, created_at=1.0, run_name="belt")
    store = services.jobs.store
    store.insert(queued)
    store.transition("train-1", JobState.FAILED, expect=(JobState.QUEUED,), text="failed", message="No room.")
    facts = call(services, "train", **asked).structured_content
    assert facts["job_id"] == "train-1"
    assert facts["message"] == "This job existed already (same run_name): nothing new was started. No room."
