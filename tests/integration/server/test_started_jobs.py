"""What a client is told beside the summary of a job that has started."""

import shutil
from pathlib import Path
from typing import Any

import anyio
from mcp import Client

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.planning.request import TrainRequest
from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services

ID = "train-7f3k9q2d"


def test_warnings_name_real_paths_and_no_file_that_nobody_reads(
    environ: dict[str, str], tiny_training: dict[str, Any], belt: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(belt / "train", tmp_path / "alone"))
    (folder / "annotations.json").unlink()
    asked = {**tiny_training, "train_dataset": str(folder), "run_name": "first"}
    services = Services(environ)
    plan = services.planner.plan(TrainRequest(**asked))
    assert any("{job_dir}/holdout" in warning for warning in plan.warnings)
    assert any(warning.startswith("left out, not in") for warning in plan.warnings)
    services.jobs.store.insert(
        Job(ID, "train", JobState.QUEUED, plan, created_at=1.0, results_dir=f"jobs/{ID}/results", run_name="first")
    )
    services.jobs.store.transition(ID, JobState.FAILED, expect=(JobState.QUEUED,), text="made to fail")

    async def start() -> Any:
        async with Client(build(services, reconcile=False)) as client:
            return await client.call_tool("train", asked)  # the same name and plan: the same job

    answer = anyio.run(start)
    assert answer.structured_content["job_id"] == ID
    told = answer.content[0].text
    assert f"{services.settings.home}/jobs/{ID}/holdout/train/annotations_panoptic.json" in told
    assert "{job_dir}" not in told
    assert "left out, not in" not in told
