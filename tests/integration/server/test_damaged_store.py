"""A job store that does not open keeps jobs from starting, and nothing else: plans, checks and advice go on."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from mask2former_mcp import cli
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.planning.request import TrainRequest
from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services

GARBAGE = b"this was a database once" * 400


def calls(environ: dict[str, str], *asked: tuple[str, dict[str, Any]]) -> list[Any]:
    """Answers of one server that also reconciles, as in real life."""

    async def ask() -> list[Any]:
        async with Client(build(Services(environ))) as client:
            return [await client.call_tool(tool, arguments) for tool, arguments in asked]

    return anyio.run(ask)


@pytest.fixture
def store(environ: dict[str, str]) -> Path:
    path = Path(environ["M2F_HOME"]) / "jobs.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(GARBAGE)
    return path


def test_a_dry_run_plans_with_a_warning_and_a_start_is_refused_with_the_cure(environ, tiny_training, store):
    planned, started, seen = calls(
        environ, ("train", {**tiny_training, "dry_run": True}), ("train", tiny_training), ("doctor", {})
    )
    assert not planned.is_error, planned.content[0].text
    plan = planned.structured_content
    assert plan["spec"]["train"]["num_epochs"] == 2
    (warning,) = [text for text in plan["warnings"] if "jobs.sqlite3" in text]
    assert warning.startswith("cannot start yet")
    assert "Move jobs.sqlite3 away" in warning
    refused = started.structured_content
    assert (refused["code"], refused["started"]) == ("store_error", False)
    assert "Move jobs.sqlite3 away" in refused["fix"]
    checks = {check["name"]: check for check in seen.structured_content["checks"]}
    assert (checks["job store"]["status"], checks["skill bundle"]["status"]) == ("error", "ok")
    assert store.read_bytes() == GARBAGE


def test_the_same_server_starts_jobs_again_once_the_file_is_moved_away(environ, tiny_training, store):
    services = Services(environ)

    async def ask() -> list[Any]:
        async with Client(build(services, reconcile=False)) as client:
            refused = await client.call_tool("list_jobs", {})
            store.rename(store.with_suffix(".damaged"))
            return [refused, await client.call_tool("list_jobs", {})]

    refused, answered = anyio.run(ask)
    assert refused.structured_content["code"] == "store_error"
    assert answered.structured_content["jobs"] == []


def test_a_plan_that_needs_a_parent_says_that_the_store_is_what_is_missing(environ, store):
    (planned,) = calls(environ, ("export", {"parent_job_id": "train-7f3k9q2d", "dry_run": True}))
    assert planned.structured_content["code"] == "store_error"
    assert "jobs.sqlite3" in planned.structured_content["message"]


def test_a_home_that_cannot_be_made_does_not_keep_a_plan_away(environ, tiny_training):
    away = {**environ, "M2F_HOME": "/proc/nowhere/home"}
    (planned,) = calls(away, ("train", {**tiny_training, "dry_run": True}))
    assert not planned.is_error, planned.content[0].text
    assert any("M2F_HOME" in warning for warning in planned.structured_content["warnings"])


def test_a_job_that_does_not_read_is_named_beside_the_others(environ, tiny_training, capsys, monkeypatch):
    services = Services(environ)
    plan = services.planner.plan(TrainRequest(**tiny_training))
    for number in (1, 2):
        job = Job(f"train-{number}", "train", JobState.QUEUED, plan, created_at=number, results_dir=f"jobs/{number}")
        services.jobs.store.insert(job)
        services.jobs.store.transition(job.id, JobState.FAILED, expect=(JobState.QUEUED,), text="made to fail")
    with services.jobs.store.database.write() as connection:
        connection.execute("UPDATE jobs SET plan = json_set(plan, '$.colour', 'red') WHERE id = 'train-2'")

    answered, seen = calls(environ, ("list_jobs", {}), ("doctor", {}))
    facts = answered.structured_content
    assert [job["job_id"] for job in facts["jobs"]] == ["train-1"]
    (left_out,) = facts["unreadable"]
    assert left_out["job_id"] == "train-2"
    assert "cannot be read" in left_out["message"]
    assert "WHERE id = 'train-2'" in left_out["fix"]
    (check,) = [check for check in seen.structured_content["checks"] if check["name"] == "jobs"]
    assert check["status"] == "warning"
    assert "train-2" in check["detail"]
    assert "WHERE id = 'train-2'" in check["fix"]

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["jobs"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("train-1\t")
    assert "WHERE id = 'train-2'" in told.err
