"""A study of two trials on Docker with our image: what was stopped early is gone, the winner is what comes after."""

from typing import Any

import anyio
import pytest
from mcp import Client

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def test_a_pruned_trial_leaves_no_container_and_evaluate_takes_the_winners_checkpoint(
    on_docker: Any, tiny_training: dict[str, Any], processes: Any, talk: Any
) -> None:
    anyio.run(_study, on_docker, tiny_training, talk)


async def _study(server: Any, tiny_training: dict[str, Any], talk: Any) -> None:
    # Trial 1 hardly learns, so that trial 0 is ahead of it at the first rung.
    search = {
        "max_trials": 2, "max_epochs": 6, "max_concurrent": 1, "algorithm": "asha", "reduction_factor": 2, "seed": 1,
        "search_space": {"train.optim.lr": {"min": 1e-8, "max": 2e-8}},
    }  # fmt: skip
    async with Client(server) as client:
        study = await talk.facts(client, "train", {**tiny_training, "num_epochs": 6, "automl": search})
        await talk.finished(client, study, patience_s=600)
        found = (await talk.facts(client, "get_job", {"job_id": study["job_id"]}))["study"]
        ends = {line["trial"]: line["status"] for line in found["leaderboard"]}
        assert ends == {0: "finished", 1: "pruned"}, found
        members = (await talk.facts(client, "list_jobs", {"study_id": study["job_id"]}))["jobs"]
        assert len([job for job in members if job.get("trial") is not None]) == 2
        assert not [container for job in members for container in talk.containers(job["job_id"])]

        evaluate = await talk.facts(client, "evaluate", {"parent_job_id": study["job_id"]})
        await talk.finished(client, evaluate)
        plan = await talk.facts(client, "evaluate", {"parent_job_id": study["job_id"], "dry_run": True})
        assert plan["checkpoint"]["sha256"] == found["winner"]["sha256"]
        assert found["winner"]["trial"] == 0
        score = (await talk.facts(client, "get_job", {"job_id": evaluate["job_id"]}))["metrics"]["mIoU"]
        assert score == pytest.approx(found["winner"]["metric"], abs=1e-3)
