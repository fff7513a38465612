"""The main job on a real Docker Engine with data, and every job's results, in a real S3-speaking server."""

import json
import os
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture
def server(cutting: Any, on_docker: StdioServerParameters) -> StdioServerParameters:
    """On Docker, and its store behind the cutting proxy (`environ` was made after the proxy)."""
    assert on_docker.env is not None
    assert on_docker.env["AWS_ENDPOINT_URL"].endswith(str(cutting.port))
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    return on_docker.model_copy(update={"env": {**on_docker.env, "AWS_SECRET_ACCESS_KEY": secret}})


def test_the_chain_with_data_and_results_in_s3(
    shop: str, cutting: Any, server: Any, store: Any, tiny_training: dict[str, Any], processes: Any, talk: Any
) -> None:
    anyio.run(_chain, shop, cutting, server, store, {**tiny_training, "train_dataset": shop}, talk)
    assert not [line for line in cutting.asked if line.startswith("DELETE")]
    uploaded = [path for path in (store.folder / "results").rglob("*") if path.is_file()]
    for secret in (talk.key, os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert not [path for path in uploaded if secret.encode() in path.read_bytes()]


async def _chain(shop: str, proxy: Any, server: Any, store: Any, training: dict[str, Any], talk: Any) -> None:
    wanted = {**training, "automl_policy": "off"}
    async with Client(server) as client:
        proxy.cuts, proxy.after = 2, (store.folder / "shop/belt/train/images.tar.gz").stat().st_size // 2
        train = await talk.facts(client, "train", {**wanted, "results_dir": "s3://results/train"})
        container = json.dumps(await talk.running(client, train["job_id"]))
        assert talk.key not in container
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in container
        await talk.finished(client, train)
        assert proxy.cuts == 0, "no transfer was cut: nothing was shown"
        _delivered(store, "train", train["job_id"], "*.pth")
        for tool, made in (("evaluate", "status.json"), ("export", "*.onnx"), ("inference", "*.json")):
            asked = {"parent_job_id": train["job_id"], "results_dir": f"s3://results/{tool}"}
            job = await talk.finished(client, await talk.facts(client, tool, asked))
            _delivered(store, tool, job["job_id"], made)
        proxy.asked.clear()
        again = await talk.facts(client, "train", {**wanted, "num_epochs": 1, "results_dir": "s3://results/again"})
        await talk.finished(client, again)
        assert proxy.objects("shop") == [], "the second job downloads nothing"
        _delivered(store, "again", again["job_id"], "*.pth", action="train")


def _delivered(store: Any, name: str, job_id: str, made: str, action: str | None = None) -> None:
    results = store.folder / "results" / name
    told = json.loads((results / "job" / "job.json").read_text())
    assert (told["job_id"], told["state"]) == (job_id, "succeeded")
    assert list((results / (action or name)).glob(made)), name
