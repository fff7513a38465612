"""Nothing is lost: the server and the supervisor are killed in the middle of a training, and it still ends well."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client

TERMINAL = {"succeeded", "failed", "cancelled", "lost"}
ENGINE = "mask2former_mcp.engine"
SUPERVISOR = "mask2former_mcp.jobs.supervisor"
LAUNCHER = "platforms/launcher.py"
Find = Callable[[str], list[psutil.Process]]


@pytest.fixture
def longer_training(tiny_training: dict[str, Any]) -> dict[str, Any]:
    """Long enough to be interrupted: a checkpoint every epoch, some seconds in all."""
    return {**tiny_training, "num_epochs": 6, "automl_policy": "off"}


async def running(client: Client, job_id: str) -> None:
    """Until the trainer has finished its first epoch."""
    with anyio.fail_after(60):
        while True:
            job = (await client.call_tool("get_job", {"job_id": job_id})).structured_content
            assert job["status"] not in TERMINAL, job
            if job["status"] == "running" and "mIoU" in job["metrics"]:
                return
            await anyio.sleep(0.1)


async def ended(client: Client, job_id: str) -> dict[str, Any]:
    with anyio.fail_after(120):
        while True:
            result = await client.call_tool("wait_for_job", {"job_id": job_id, "timeout_s": 10})
            if result.structured_content["status"] in TERMINAL:
                return result.structured_content


def test_a_new_server_sees_the_training_of_a_killed_one_finish(stdio, longer_training, processes):
    anyio.run(_kill_the_server, stdio, longer_training, processes)


async def _kill_the_server(stdio: Any, training: dict[str, Any], find: Find) -> str:
    with contextlib.suppress(BaseExceptionGroup, OSError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        async with Client(stdio) as client:
            started = (await client.call_tool("train", training)).structured_content
            await running(client, started["job_id"])
            for server in find("server.py"):
                server.kill()
    assert not find("server.py")
    assert find(ENGINE), "the trainer must not die with the server"
    async with Client(stdio) as client:
        last = await ended(client, started["job_id"])
        assert last["status"] == "succeeded", last
        metrics = (await client.call_tool("get_job_metrics", {"job_id": started["job_id"]})).structured_content
        assert len(metrics["metrics"]["mIoU"]) == training["num_epochs"]
    return started["job_id"]


def test_a_new_server_sees_the_search_of_a_killed_one_finish(stdio, longer_training, processes):
    search = {**longer_training, "automl_policy": "auto", "num_epochs": 4, "automl": {"max_trials": 2}}
    job_id = anyio.run(_kill_the_server, stdio, search, processes)
    anyio.run(_each_trial_once, stdio, job_id)


async def _each_trial_once(stdio: Any, study_id: str) -> None:
    async with Client(stdio) as client:
        jobs = (await client.call_tool("list_jobs", {"study_id": study_id})).structured_content["jobs"]
        assert sorted(job["trial"] for job in jobs if job.get("trial") is not None) == [0, 1]
        found = (await client.call_tool("get_job", {"job_id": study_id})).structured_content["study"]
        assert found["final"]["status"] == "succeeded"
        plain = next(line["metric"] for line in found["leaderboard"] if line["trial"] == 0)
        assert round(found["winner"]["metric"], 4) >= plain


def test_a_killed_supervisor_is_replaced_and_never_two_trainers_run(stdio, longer_training, processes):
    with watched(processes) as most:
        anyio.run(_kill_the_supervisor, stdio, longer_training, processes)
    assert most() == 1


async def _kill_the_supervisor(stdio: Any, training: dict[str, Any], find: Find) -> None:
    async with Client(stdio) as client:
        started = (await client.call_tool("train", training)).structured_content
        await running(client, started["job_id"])
        for supervisor in find(SUPERVISOR):
            supervisor.kill()
    async with Client(stdio) as client:  # its start reconciles
        last = await ended(client, started["job_id"])
        assert last["status"] == "succeeded", last


def test_everything_killed_at_once_continues_from_the_last_checkpoint(stdio, longer_training, processes):
    anyio.run(_kill_everything, stdio, longer_training, processes)


async def _kill_everything(stdio: Any, training: dict[str, Any], find: Find) -> None:
    async with Client(stdio) as client:
        started = (await client.call_tool("train", training)).structured_content
        await running(client, started["job_id"])
        # All at once, as when the machine goes away: nobody is left who could record how the trainer ended.
        for victim in (*find(SUPERVISOR), *find(LAUNCHER), *find(ENGINE)):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
    async with Client(stdio) as client:
        last = await ended(client, started["job_id"])
        assert last["status"] == "succeeded", last
        metrics = (await client.call_tool("get_job_metrics", {"job_id": started["job_id"]})).structured_content
        assert len(metrics["metrics"]["mIoU"]) == training["num_epochs"], "each epoch once, none twice"


def test_a_cancelled_training_stops_whole_keeps_its_checkpoints_and_resumes(stdio, longer_training, processes):
    anyio.run(_cancel_and_resume, stdio, longer_training, processes)


async def _cancel_and_resume(stdio: Any, training: dict[str, Any], find: Find) -> None:
    async with Client(stdio) as client:
        job = {"job_id": (await client.call_tool("train", training)).structured_content["job_id"]}
        await running(client, job["job_id"])
        refused = await client.call_tool("cancel_job", job)
        assert refused.structured_content["code"] == "confirmation_required"
        assert not (await client.call_tool("cancel_job", {**job, "confirm": True})).is_error
        assert (await ended(client, job["job_id"]))["status"] == "cancelled"
        assert not find(ENGINE)
        files = (await client.call_tool("list_artifacts", job)).structured_content["artifacts"]
        assert any(file["kind"] == "checkpoint" for file in files)
        await client.call_tool("resume_job", job)
        last = await ended(client, job["job_id"])
        assert last["status"] == "succeeded", last
        metrics = (await client.call_tool("get_job_metrics", job)).structured_content["metrics"]
        assert [epoch for epoch, _ in metrics["mIoU"]] == list(range(training["num_epochs"]))


@contextlib.contextmanager
def watched(find: Find) -> Iterator[Callable[[], int]]:
    """Counts the trainers alive at the same time, from another thread, for as long as the block runs."""
    most = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal most
        while not stop.is_set():
            # A trainer's data loaders share its command line: only leaders of their group are counted.
            most = max(most, len({process.pid for process in find(ENGINE) if _leads(process)}))
            time.sleep(0.05)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield lambda: most
    finally:
        stop.set()
        thread.join(5)


def _leads(process: psutil.Process) -> bool:
    try:
        parent = process.parent()
        return parent is None or ENGINE not in " ".join(parent.cmdline())
    except psutil.Error:
        return False
