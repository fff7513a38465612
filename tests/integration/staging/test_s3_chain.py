"""The main job with its data, checkpoints and results in a real S3-speaking server, through the MCP server."""

import json
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
TERMINAL = {"succeeded", "failed", "cancelled", "lost"}
KEY = "planted-key-4711"


@pytest.fixture
def server(cutting: Any, stdio: StdioServerParameters) -> StdioServerParameters:
    """The server with its store behind the cutting proxy (`environ` was made after the proxy), and a planted key."""
    assert stdio.env is not None
    assert stdio.env["AWS_ENDPOINT_URL"].endswith(str(cutting.port))
    return stdio.model_copy(update={"env": {**stdio.env, "M2F_ENCRYPTION_KEY": KEY, "M2F_UPLOAD_EVERY_S": "1"}})


def test_data_weights_and_results_in_s3(shop, cutting, server, store, tiny_training, processes, tmp_path):
    anyio.run(_walk, shop, cutting, server, store, tiny_training)
    _no_secret_anywhere(store.folder / "results", tmp_path / "home")
    assert not [line for line in cutting.asked if line.startswith("DELETE")]


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, (tool, result.content)
    assert KEY not in str(result.content)
    found: dict[str, Any] = result.structured_content
    return found


async def succeeded(client: Client, job: dict[str, Any]) -> str:
    with anyio.fail_after(120):
        while job["status"] not in TERMINAL:
            job = await call(client, "wait_for_job", job_id=job["job_id"], timeout_s=10)
    if job["status"] != "succeeded":
        log = await client.call_tool("get_job_logs", {"job_id": job["job_id"], "tail": 60})
        raise AssertionError((job, log.content))
    return str(job["job_id"])


async def _walk(shop: str, proxy: Any, server: Any, store: Any, training: dict[str, Any]) -> None:
    async with Client(server) as client:
        size = (store.folder / "shop/belt/train/images.tar.gz").stat().st_size
        train = await _training_survives_cut_transfers(client, shop, proxy, training, size)
        listed = await call(client, "list_artifacts", job_id=train)
        assert listed["uploaded_to"] == "s3://results/train"
        checkpoint = _results_are_in_the_bucket(store.folder / "results" / "train", train)
        proxy.asked.clear()
        asked = {"checkpoint": f"s3://results/train/train/{checkpoint}", "eval_dataset": shop}
        evaluated = await succeeded(
            client, await call(client, "evaluate", **asked, results_dir="s3://results/evaluate")
        )
        assert proxy.objects("shop") == [], "the data is here already"
        assert any(checkpoint in name for name in proxy.objects("results"))
        assert json.loads((store.folder / "results/evaluate/job/job.json").read_text())["metrics"]["mIoU"] >= 0
        assert evaluated != train
        proxy.asked.clear()
        await succeeded(client, await call(client, "evaluate", **asked))
        assert proxy.objects("shop") + proxy.objects("results") == [], "the second job downloads nothing"
        for tool, made in (("export", "*.onnx"), ("inference", "*.json")):
            await succeeded(client, await call(client, tool, parent_job_id=train, results_dir=f"s3://results/{tool}"))
            assert list((store.folder / "results" / tool / tool).glob(made)), tool


async def _training_survives_cut_transfers(
    client: Client, shop: str, proxy: Any, training: dict[str, Any], size: int
) -> str:
    wanted = {**training, "train_dataset": shop, "automl_policy": "off", "results_dir": "s3://results/train"}
    plan = await call(client, "train", **wanted, dry_run=True)
    assert not [name for name in proxy.objects("shop") if not name.endswith(".json")], "a Plan reads annotations only"
    proxy.cuts, proxy.after = 2, size // 2
    train = await succeeded(client, await call(client, "train", **wanted, expect_digest=plan["digest"]))
    assert proxy.cuts == 0, "no transfer was cut: nothing was shown"
    fetched = [name for name in proxy.objects("shop") if not name.endswith(".json")]
    assert len(fetched) > len(set(fetched)), "a cut transfer goes on with another request"
    return train


def _results_are_in_the_bucket(results: Path, job_id: str) -> str:
    names = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    assert {"train/status.json", "train/experiment.yaml", "job/log.txt", "job/plan.json", "job/job.json"} <= names
    assert not any("spec.yaml" in name for name in names)
    told = json.loads((results / "job" / "job.json").read_text())
    assert (told["job_id"], told["state"]) == (job_id, "succeeded")
    return sorted(name for name in names if name.startswith("train/model_epoch_"))[-1].removeprefix("train/")


def _no_secret_anywhere(results: Path, home: Path) -> None:
    """But for the encryption key in each job's own spec.yaml, which only its owner may read."""
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    for path in (p for root in (results, home) for p in root.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert secret not in content, path
        if path.name == "spec.yaml" and path.is_relative_to(home):
            assert path.stat().st_mode & 0o077 == 0
        else:
            assert KEY.encode() not in content, path
