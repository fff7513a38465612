"""A search against plain training at the same epochs: real client, real server, real engine."""

import shutil
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from mcp import Client


async def facts(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, (tool, result.content)
    return result.structured_content


async def trained(client: Client, arguments: dict[str, Any]) -> str:
    return await ended(client, (await facts(client, "train", arguments))["job_id"])


async def ended(client: Client, job_id: str) -> str:
    with anyio.fail_after(240):
        while True:
            job = await facts(client, "wait_for_job", {"job_id": job_id, "timeout_s": 10})
            if job["status"] not in ("queued", "preparing", "running"):
                assert job["status"] == "succeeded", job
                return job_id


@pytest.mark.slow
def test_the_winner_of_a_search_is_at_least_as_good_as_automl_off_at_the_same_epochs(stdio, tiny_training, processes):
    anyio.run(_compare, stdio, tiny_training)


async def _compare(stdio: Any, tiny_training: dict[str, Any]) -> None:
    async with Client(stdio) as client:
        plain = await trained(client, {**tiny_training, "automl_policy": "off"})
        asked = {**tiny_training, "automl": {"max_trials": 2, "seed": 1}}
        plan = await facts(client, "train", {**asked, "dry_run": True})
        assert plan["warnings"][0].startswith("AutoML search: at most 2 trials (bayesian, 1 at once) of 2 epochs")
        study_id = await trained(client, asked)

        found = (await facts(client, "get_job", {"job_id": study_id}))["study"]
        trial_0 = next(line["job_id"] for line in found["leaderboard"] if line["trial"] == 0)
        off, same, won = [
            (await facts(client, "get_job_metrics", {"job_id": job_id}))["metrics"]["mIoU"]
            for job_id in (plain, trial_0, study_id)
        ]
        # Trial 0 is the plain run again, number for number, so that the best of all trials cannot be below it.
        assert np.allclose(same, off)
        assert max(value for _, value in won) >= max(value for _, value in off)
        assert found["winner"]["metric"] == pytest.approx(max(value for _, value in won))
        assert found["final"]["status"] == "succeeded"
        assert sorted(await trials(client, study_id)) == [0, 1]


@pytest.mark.slow
def test_a_search_from_a_bare_checkpoint_measures_it_first_and_goes_on_with_a_bigger_budget(
    stdio: Any, tiny_training: dict[str, Any], tmp_path: Path, processes: Any
) -> None:
    anyio.run(_start_from_a_file, stdio, {**tiny_training, "num_epochs": 1}, tmp_path)


async def _start_from_a_file(stdio: Any, training: dict[str, Any], folder: Path) -> None:
    async with Client(stdio) as client:
        plain = await trained(client, {**training, "automl_policy": "off"})
        listed = await facts(client, "list_artifacts", {"job_id": plain})
        (weights,) = Path(listed["folder"]).glob("train/model_epoch_*.pth")
        bare = shutil.copy(weights, folder / "weights.pth")  # nothing beside it says what network it is of
        asked = {**training, "checkpoint": str(bare), "automl": {"max_trials": 2, "seed": 1}}
        study_id = await trained(client, asked)
        baseline = (await facts(client, "get_job", {"job_id": study_id}))["study"]["baseline"]
        assert baseline["status"] == "succeeded", baseline
        measured = (await facts(client, "get_job_metrics", {"job_id": plain}))["metrics"]["mIoU"]
        assert baseline["metrics"]["mIoU"] == pytest.approx(measured[0][1], abs=2e-3)

        before = await trials(client, study_id)
        refused = await client.call_tool("resume_job", {"job_id": study_id})
        assert refused.is_error
        assert '{"max_trials": 6}' in refused.structured_content["fix"]
        await facts(client, "resume_job", {"job_id": study_id, "automl": {"max_trials": 3}})
        await ended(client, study_id)
        after = await trials(client, study_id)
        assert sorted(after) == [0, 1, 2]
        assert {number: after[number] for number in before} == before


async def trials(client: Client, study_id: str) -> dict[int, str]:
    jobs = (await facts(client, "list_jobs", {"study_id": study_id}))["jobs"]
    return {job["trial"]: job["job_id"] for job in jobs if job.get("trial") is not None}
