"""A dry run of each action through the server: the whole Plan, and nothing that stays."""

import re
from pathlib import Path
from typing import Any

import anyio
from mcp import Client

from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services

ESTIMATES = {
    "train": r"[^.]\. Estimate: about [\d.]+ (s|min|h), [\d.]+ GB memory, [\d.]+ GB disk \(basis: .+\)\.$",
    "quantize": r"[^.]\. Estimate: [\d.]+ GB memory \(basis: model\)\.$",
    "gen_trt_engine": r"[^.]\. Estimate: none for TensorRT builds\.$",
}


def test_a_dry_run_of_every_action_starts_and_stores_nothing(
    environ: dict[str, str], belt: Path, tmp_path: Path
) -> None:
    weights, graph = tmp_path / "weights.pth", tmp_path / "model.onnx"
    for file in (weights, graph):
        file.write_bytes(b"as far as planning looks")
    known = {"overrides": {"num_classes": 7}}
    asked: dict[str, dict[str, Any]] = {
        "train": {"train_dataset": str(belt)},
        "evaluate": {"checkpoint": str(weights), "eval_dataset": str(belt)},
        "export": {"checkpoint": str(weights), **known},
        "inference": {"checkpoint": str(weights), "inference_dataset": str(belt / "test"), "eval_dataset": str(belt)},
        "quantize": {"model_path": str(weights), "train_dataset": str(belt)},
        "gen_trt_engine": {"onnx_file": str(graph)},
    }
    assert asked.keys() == REQUESTS.keys()

    async def ask() -> tuple[dict[str, Any], Any]:
        async with Client(build(Services(environ), reconcile=False)) as client:
            plans = {name: await client.call_tool(name, {**words, "dry_run": True}) for name, words in asked.items()}
            return plans, await client.call_tool("list_jobs", {})

    plans, jobs = anyio.run(ask)
    for action, result in plans.items():
        assert not result.is_error, result.structured_content
        assert result.structured_content["action"] == action
        assert result.structured_content["spec_overrides"]["results_dir"] == "{results_dir}"
        assert re.search(ESTIMATES.get(action, ""), result.content[0].text.partition("\n")[0]), action
    assert jobs.structured_content["jobs"] == []
    assert list(Path(environ["M2F_HOME"]).glob("jobs/*")) == []
