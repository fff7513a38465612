"""A search against plain training at the same epochs: real client, real server, real engine."""

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
    job = await facts(client, "train", arguments)
    with anyio.fail_after(240):
        while job["status"] in ("queued", "preparing", "running"):
            job = await facts(client, "wait_for_job", {"job_id": job["job_id"], "timeout_s": 10})
    assert job["status"] == "succeeded", job
    return job["job_id"]


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
        jobs = (await facts(client, "list_jobs", {"study_id": study_id}))["jobs"]
        assert sorted(job["trial"] for job in jobs if job.get("trial") is not None) == [0, 1]
