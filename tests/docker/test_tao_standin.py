"""TAO's side of the contract on a real Docker Engine, through the MCP server, against tests/docker/standin.

NVIDIA's images cannot be had here. What the stand-in does is what their published sources say that they do.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import yaml
from mcp import Client

import docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
PYT, DEPLOY = "m2f-tao-standin:pyt", "m2f-tao-standin:deploy"
TERMINAL = frozenset({"succeeded", "failed", "cancelled", "lost"})


class Tao:
    """One client of that server; `planted` are values that must appear in no answer."""

    def __init__(self, client: Client, planted: Sequence[str] = ()) -> None:
        self.client, self.planted = client, planted

    async def ask(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, (tool, result.content)
        assert not [value for value in self.planted if value in str(result)], tool
        answer: dict[str, Any] = result.structured_content
        return answer

    async def end(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Start a job and wait for its end."""
        return await self.ended((await self.ask(tool, **arguments))["job_id"])

    async def ended(self, job_id: str) -> dict[str, Any]:
        with anyio.fail_after(240):
            while (job := await self.ask("wait_for_job", job_id=job_id, timeout_s=10))["status"] not in TERMINAL:
                pass
        return job

    async def log(self, job_id: str) -> str:
        return json.dumps(await self.ask("get_job_logs", job_id=job_id, tail=200))

    async def running(self, job_id: str) -> dict[str, Any]:
        """The job's container, once an epoch has passed in it."""
        with anyio.fail_after(90):
            while (job := await self.ask("get_job", job_id=job_id))["progress"] == 0:
                assert job["status"] not in TERMINAL, (job, await self.log(job_id))
                await anyio.sleep(0.1)
        (container,) = containers(job_id)
        return container


def containers(job_id: str) -> list[dict[str, Any]]:
    api = docker.from_env().api
    found = api.containers(all=True, filters={"label": f"org.mask2former-mcp.job={job_id}"})
    return [api.inspect_container(one["Id"]) for one in found]


@pytest.fixture
def tao_server(stdio: Any) -> Any:
    chosen = {
        "M2F_PLATFORM": "docker",
        "M2F_RUNTIME": "tao",
        "M2F_IMAGES": json.dumps([PYT, DEPLOY]),
        "M2F_CONTAINER_MEMORY_GB": "1",
        "M2F_CONTAINER_SHM_GB": "0.1",
        "M2F_POLL_S": "0.2",
    }
    return stdio.model_copy(update={"env": {**stdio.env, **chosen}})


@pytest.fixture
def small(belt: Path) -> dict[str, Any]:
    """Arguments of a training in the stand-in; `model_name` in its overrides chooses quirks."""
    return {"train_dataset": str(belt), "num_epochs": 3, "automl_policy": "off", "pretrained_weights": "", "image": PYT}


def run(story: Any, *arguments: Any) -> None:
    anyio.run(story, *arguments)


def test_every_action_runs_in_its_image_and_nothing_is_left_behind(
    tao_server: Any, small: dict[str, Any], tmp_path: Path, processes: Any
) -> None:
    run(_chain, tao_server, small, tmp_path / "home" / "jobs")


async def _chain(server: Any, small: dict[str, Any], jobs: Path) -> None:
    async with Client(server) as client:
        tao, ids = Tao(client), []

        async def done(tool: str, **arguments: Any) -> str:
            job = await tao.end(tool, **arguments)
            assert job["status"] == "succeeded", (job, await tao.log(job["job_id"]))
            ids.append(job["job_id"])
            return str(job["job_id"])

        started = await tao.ask("train", **small, overrides={"model_name": "rewrite=7 epoch_s=1"})
        container = await tao.running(started["job_id"])
        assert container["Config"]["Entrypoint"] == ["/usr/local/bin/entrypoint"]
        assert container["Config"]["Cmd"] == ["mask2former", "train", "-e", "/job/spec.yaml"]
        assert container["HostConfig"]["CapDrop"] == ["ALL"]
        assert "TELEMETRY_OPT_OUT=yes" in container["Config"]["Env"]
        assert not container["Config"]["User"].startswith("0")
        train = await tao.ended(started["job_id"])
        assert train["status"] == "succeeded", (train, await tao.log(train["job_id"]))
        assert train["metrics"]["mIoU"] == pytest.approx(0.76, abs=0.01)
        ids.append(train["job_id"])
        # The image rewrote the copy that it was given, and that alone.
        folder = jobs / train["job_id"]
        copy = yaml.safe_load((folder / "run" / "1" / "inside" / "spec.yaml").read_text())
        assert (copy["train"]["num_gpus"], copy["results_dir"]) == (7, "/results")
        assert copy["dataset"]["train"]["img_dir"].startswith("/data/")
        assert yaml.safe_load((folder / "spec.yaml").read_text())["train"]["num_gpus"] == 1

        parent = {"parent_job_id": train["job_id"], "image": PYT}
        evaluated = await tao.ask("get_job", job_id=await done("evaluate", **parent))
        assert evaluated["metrics"]["mIoU"] == pytest.approx(0.3)  # the best epoch's checkpoint, the third
        await done("inference", **parent)
        await done("quantize", **parent)
        onnx = await done("export", **parent, mode="semantic")
        engine = await done("gen_trt_engine", parent_job_id=onnx, image=DEPLOY)
        measured = await tao.ask("get_job", job_id=await done("evaluate", parent_job_id=engine, image=DEPLOY))
        assert measured["metrics"] == {"mIoU": 0.43, "ACC_all": 0.91}
        drawn = await done("inference", parent_job_id=engine, image=DEPLOY)
        assert list((jobs / drawn / "results" / "trt_inference").glob("*.jpg"))
        assert not [container for job_id in ids for container in containers(job_id)]


@pytest.mark.parametrize(
    ("quirk", "code"),
    [
        ("oom=1", "out_of_memory"),
        ("assert=1", "device_assert"),
        ("bug=1", "program_error"),
        ("disk=1", "disk_full"),
        ("missing=1", "missing_file"),
        ("interrupt=1", "interrupted"),
        ("silent", "not_finished"),
        ("kill=1", "killed"),
    ],
)
def test_the_truth_is_told_about_each_ending(
    tao_server: Any, small: dict[str, Any], processes: Any, quirk: str, code: str
) -> None:
    run(_ending, tao_server, small, quirk, code)


async def _ending(server: Any, small: dict[str, Any], quirk: str, code: str) -> None:
    async with Client(server) as client:
        tao = Tao(client)
        job = await tao.end("train", **small, overrides={"model_name": quirk})
        assert (job["status"], job["error_code"]) == ("failed", code), job
        assert not containers(job["job_id"])
        log = await tao.log(job["job_id"])
        assert "Epoch 0: 100%" in log
        assert "attempt 2" not in log
        if code == "missing_file":  # the stand-in names it below /data
            assert f"{small['train_dataset']}/train/images/0007.jpg" in job["message"]


def test_a_nan_and_repeated_kpis_are_no_measurements(tao_server: Any, small: dict[str, Any], processes: Any) -> None:
    run(_sticky, tao_server, small)


async def _sticky(server: Any, small: dict[str, Any]) -> None:
    async with Client(server) as client:
        tao = Tao(client)
        job = await tao.end("train", **small, overrides={"model_name": "nan=1"})
        assert job["status"] == "succeeded", (job, await tao.log(job["job_id"]))
        metrics = (await tao.ask("get_job_metrics", job_id=job["job_id"]))["metrics"]
        assert [epoch for epoch, _ in metrics["mIoU"]] == [0, 2]
        assert [epoch for epoch, _ in metrics["train_loss"]] == [0, 1, 2]


def test_a_container_that_somebody_removed_goes_on_in_a_fresh_folder_where_nothing_is_resumed_unasked(
    tao_server: Any, small: dict[str, Any], tmp_path: Path, processes: Any
) -> None:
    run(_removed, tao_server, small, tmp_path / "home" / "jobs")


async def _removed(server: Any, small: dict[str, Any], jobs: Path) -> None:
    async with Client(server) as client:
        tao = Tao(client)
        started = await tao.ask("train", **small, overrides={"model_name": "epoch_s=2"})
        container = await tao.running(started["job_id"])
        docker.from_env().api.remove_container(container["Id"], force=True)
        job = await tao.ended(started["job_id"])
        assert job["status"] == "succeeded", (job, await tao.log(job["job_id"]))
        results = jobs / job["job_id"] / "results"
        first = (results / "train" / "status.json").read_text()
        fresh = (results / "attempt-2" / "train" / "status.json").read_text()
        assert (first.count("STARTED"), fresh.count("STARTED")) == (1, 1)
        assert "Resuming training from checkpoint: /results/train/model_epoch_" in fresh
        assert not (results / "attempt-3").exists()


def test_an_export_that_failed_after_writing_its_file_is_tried_again_where_no_file_is(
    tao_server: Any, small: dict[str, Any], processes: Any
) -> None:
    run(_exported_again, tao_server, small)


async def _exported_again(server: Any, small: dict[str, Any]) -> None:
    async with Client(server) as client:
        tao = Tao(client)
        parent = (await tao.end("train", **small))["job_id"]
        # The stand-in fails once in each folder, and each attempt has one of its own.
        job = await tao.end("export", parent_job_id=parent, image=PYT, overrides={"model_name": "xid"})
        assert (job["status"], job["error_code"]) == ("failed", "gpu_fault"), job
        log = await tao.log(job["job_id"])
        assert "attempt 4" in log
        assert "already exists" not in log


@pytest.mark.parametrize("quirk", ["nccl-once=1", "xid-once=1"])
def test_the_machines_failure_goes_on_in_a_fresh_folder_from_the_last_checkpoint(
    tao_server: Any, small: dict[str, Any], tmp_path: Path, processes: Any, quirk: str
) -> None:
    run(_retried, tao_server, small, tmp_path / "home" / "jobs", quirk)


async def _retried(server: Any, small: dict[str, Any], jobs: Path, quirk: str) -> None:
    async with Client(server) as client:
        tao = Tao(client)
        job = await tao.end("train", **small, overrides={"model_name": quirk})
        assert job["status"] == "succeeded", (job, await tao.log(job["job_id"]))
        results = jobs / job["job_id"] / "results"
        resumed = (results / "attempt-2" / "train" / "status.json").read_text()
        assert "Resuming training from checkpoint: /results/train/model_epoch_001_step_00013.pth" in resumed
        assert (results / "train" / "model_epoch_002_step_00030.pth").exists()
        files = (await tao.ask("list_artifacts", job_id=job["job_id"]))["artifacts"]
        assert [item["epoch"] for item in files if item["kind"] == "checkpoint"].count(2) == 1


def test_a_studys_weak_trial_leaves_no_container_and_evaluate_takes_the_winners_checkpoint(
    tao_server: Any, small: dict[str, Any], tmp_path: Path, processes: Any
) -> None:
    run(_study, tao_server, small, tmp_path / "home" / "jobs")


async def _study(server: Any, small: dict[str, Any], jobs: Path) -> None:
    worse = {"train.optim.lr": {"min": 0.02, "max": 0.05, "log": True}}  # the stand-in likes the default best
    automl = {"max_trials": 2, "algorithm": "asha", "search_space": worse, "seed": 3}
    asked = {**small, "num_epochs": 9, "automl_policy": "on", "automl": automl}
    async with Client(server) as client:
        tao = Tao(client)
        study = await tao.end("train", **asked, overrides={"model_name": "epoch_s=1"})
        assert study["status"] == "succeeded", study
        found = (await tao.ask("get_job", job_id=study["job_id"]))["study"]
        board = {line["trial"]: line for line in found["leaderboard"]}
        assert (board[0]["status"], board[1]["status"]) == ("finished", "pruned"), found
        assert found["winner"]["trial"] == 0
        report = json.loads((jobs / study["job_id"] / "results" / "study.json").read_text())
        assert report["final"]["status"] == "succeeded", report["final"]
        for line in board.values():
            assert not containers(line["job_id"])
        job = await tao.end("evaluate", parent_job_id=study["job_id"], image=PYT)
        assert job["status"] == "succeeded", (job, await tao.log(job["job_id"]))
        # The stand-in measures a tenth for each epoch that the checkpoint has seen: this is the last one's.
        assert job["metrics"]["mIoU"] == pytest.approx(0.9)


PLANTED = {
    name: f"planted-{name.lower()}-5f1c"
    for name in ("M2F_ENCRYPTION_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "NGC_API_KEY", "HF_TOKEN")
}


def test_planted_secrets_are_nowhere(tao_server: Any, small: dict[str, Any], tmp_path: Path, processes: Any) -> None:
    server = tao_server.model_copy(update={"env": {**tao_server.env, **PLANTED}})
    run(_secrets, server, small)
    holders = [
        (str(path), name)
        for path in tmp_path.rglob("*")
        if path.is_file()
        for name, value in PLANTED.items()
        if value.encode() in path.read_bytes()
    ]
    # Not even in the job's own spec: TAO's scripts never use the key and would copy it.
    assert not holders


async def _secrets(server: Any, small: dict[str, Any]) -> None:
    secrets = tuple(PLANTED.values())
    async with Client(server) as client:
        tao = Tao(client, secrets)
        plan = await tao.ask("train", **small, dry_run=True)
        assert any("M2F_ENCRYPTION_KEY is not handed on" in warning for warning in plan["warnings"])
        job = await tao.ask("train", **small, overrides={"model_name": "tell epoch_s=2"})
        container = await tao.running(job["job_id"])
        api = docker.from_env().api
        printed = api.logs(container["Id"]).decode()
        assert '"environ"' in printed  # the stand-in told all that it knew
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        for place, text in (("inspect", str(container)), ("log", printed), ("processes", "\n".join(commands))):
            assert not [value for value in secrets if value in text], place
        ended = await tao.ended(job["job_id"])
        assert ended["status"] == "succeeded", ended
        await tao.log(job["job_id"])
        for tool in ("get_job", "get_job_metrics", "list_artifacts"):
            await tao.ask(tool, job_id=job["job_id"])
