"""dockerd is restarted in the middle of a training, beside a kill -9 of server and supervisor: nothing is lost."""

import os
import signal
from typing import Any

import anyio
import pytest
from mcp import Client

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


def test_with_live_restore_the_container_trains_on_and_its_log_goes_on(
    on_docker: Any, tiny_training: dict[str, Any], processes: Any, talk: Any, dockerd: Any
) -> None:
    training = {**tiny_training, "num_epochs": 20, "automl_policy": "off"}
    anyio.run(_everything_is_killed, on_docker, training, processes, talk, dockerd)


async def _everything_is_killed(server: Any, training: dict[str, Any], processes: Any, talk: Any, dockerd: Any) -> None:
    async with Client(server) as client:
        job_id = (await talk.facts(client, "train", training))["job_id"]
        before = await talk.running(client, job_id)
        dockerd.stop()
        await _until(lambda: _phase(client, talk, job_id), "waiting for the Docker daemon")
        for part in ("jobs.supervisor", "server.py"):
            for process in processes(part):
                os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(Exception):  # noqa: B017, PT011 - the connection is gone, however the client words it
            with anyio.fail_after(10):
                await talk.facts(client, "get_job", {"job_id": job_id})
    async with Client(server) as client:  # before the daemon is back: the new supervisor waits for it
        job = await talk.facts(client, "get_job", {"job_id": job_id})
        assert job["status"] == "running", job
        await _until(lambda: _phase(client, talk, job_id), "waiting for the Docker daemon")
        dockerd.start()
        (after,) = talk.containers(job_id)
        assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
        job = await talk.finished(client, job)
        lines = (await talk.facts(client, "get_job_logs", {"job_id": job_id, "tail": 500}))["lines"]
        assert not [line for line in lines if "attempt 2" in line]
        steps = [line for line in lines if "epoch" in line]  # two other lines may be alike
        assert len(steps) == len(set(steps)) > 0, "the log goes on where it ended, and says nothing twice"
        metrics = (await talk.facts(client, "get_job_metrics", {"job_id": job_id}))["metrics"]
        assert [epoch for epoch, _ in metrics["mIoU"]] == list(range(training["num_epochs"]))
        assert not talk.containers(job_id)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_without_live_restore_the_training_goes_on_from_its_last_checkpoint(
    on_docker: Any, tiny_training: dict[str, Any], processes: Any, talk: Any, dockerd: Any, number: int
) -> None:
    dockerd.stop()
    dockerd.start("--live-restore=false")
    training = {**tiny_training, "num_epochs": 20, "automl_policy": "off"}
    anyio.run(_container_is_taken_along, on_docker, training, talk, dockerd, number)


async def _container_is_taken_along(
    server: Any, training: dict[str, Any], talk: Any, dockerd: Any, number: int
) -> None:
    async with Client(server) as client:
        job_id = (await talk.facts(client, "train", training))["job_id"]
        await talk.running(client, job_id, progress=0.15)
        dockerd.stop(number)
        await _until(lambda: _phase(client, talk, job_id), "waiting for the Docker daemon")
        dockerd.start("--live-restore=false")
        job = await talk.finished(client, await talk.facts(client, "get_job", {"job_id": job_id}))
        log = str(await talk.facts(client, "get_job_logs", {"job_id": job_id, "tail": 500}))
        assert "attempt 2 --- goes on from model_epoch_" in log
        assert "attempt 3" not in log
        metrics = (await talk.facts(client, "get_job_metrics", {"job_id": job_id}))["metrics"]
        assert [epoch for epoch, _ in metrics["mIoU"]] == list(range(training["num_epochs"]))
        assert job["status"] == "succeeded"
        assert not talk.containers(job_id)


def test_killed_together_with_a_daemon_without_live_restore_it_goes_on_as_well(
    on_docker: Any, tiny_training: dict[str, Any], processes: Any, talk: Any, dockerd: Any
) -> None:
    """As when the machine goes down: nobody saw the container end."""
    dockerd.stop()
    dockerd.start("--live-restore=false")
    training = {**tiny_training, "num_epochs": 20, "automl_policy": "off"}
    anyio.run(_all_go_down_together, on_docker, training, processes, talk, dockerd)


async def _all_go_down_together(server: Any, training: dict[str, Any], processes: Any, talk: Any, dockerd: Any) -> None:
    async with Client(server) as client:
        job_id = (await talk.facts(client, "train", training))["job_id"]
        await talk.running(client, job_id, progress=0.15)
        for part in ("jobs.supervisor", "server.py"):
            for process in processes(part):
                os.kill(process.pid, signal.SIGKILL)
        dockerd.stop()
        with pytest.raises(Exception):  # noqa: B017, PT011 - the connection is gone, however the client words it
            with anyio.fail_after(10):
                await talk.facts(client, "get_job", {"job_id": job_id})
    dockerd.start("--live-restore=false")
    (container,) = talk.containers(job_id)
    assert container["State"]["Status"] == "exited"
    async with Client(server) as client:
        job = await talk.finished(client, await talk.facts(client, "get_job", {"job_id": job_id}))
        log = str(await talk.facts(client, "get_job_logs", {"job_id": job_id, "tail": 500}))
        assert "attempt 2 --- goes on from model_epoch_" in log
        assert "attempt 3" not in log
        metrics = (await talk.facts(client, "get_job_metrics", {"job_id": job_id}))["metrics"]
        assert [epoch for epoch, _ in metrics["mIoU"]] == list(range(training["num_epochs"]))
        assert job["status"] == "succeeded"
        assert not talk.containers(job_id)


async def _phase(client: Client, talk: Any, job_id: str) -> str:
    job = await talk.facts(client, "get_job", {"job_id": job_id})
    assert job["status"] not in talk.terminal, job
    return str(job["phase"])


async def _until(ask: Any, words: str) -> None:
    said = ""
    with anyio.move_on_after(30):
        while words not in (said := await ask()):
            await anyio.sleep(0.1)
    assert words in said
