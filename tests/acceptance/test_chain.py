"""The main job, whole: a stdio client, the real server, the real engine, real images."""

import json
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import onnx
import onnxruntime
from mcp import Client
from PIL import Image

TERMINAL = {"succeeded", "failed", "cancelled", "lost"}


async def facts(client: Client, tool: str, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments, **options)
    assert not result.is_error, (tool, result.content)
    return result.structured_content


async def finished(client: Client, summary: dict[str, Any], seen: list[float] | None = None) -> dict[str, Any]:
    async def note(progress: float, _total: float | None, _message: str | None) -> None:
        if seen is not None:
            seen.append(progress)

    with anyio.fail_after(120):
        while summary["status"] not in TERMINAL:
            wait = {"job_id": summary["job_id"], "timeout_s": 10}
            summary = await facts(client, "wait_for_job", wait, progress_callback=note)
    if summary["status"] != "succeeded":
        log = await client.call_tool("get_job_logs", {"job_id": summary["job_id"], "tail": 60})
        raise AssertionError((summary, log.content))
    return summary


def test_from_a_folder_of_images_to_a_model_that_sees(stdio, belt, tiny_training, processes):
    anyio.run(_walk, stdio, belt, tiny_training)


async def _walk(stdio: Any, belt: Path, tiny_training: dict[str, Any]) -> None:
    async with Client(stdio) as client:
        assert (await facts(client, "doctor", {}))["ready"]
        await _data_is_checked(client, belt)
        train = await _training_follows_its_reviewed_plan(client, tiny_training)
        parent = {"parent_job_id": train["job_id"]}
        await _evaluation_measures_the_best_checkpoint(client, parent)
        exported = await _export_runs_in_onnxruntime(client, parent)
        await _the_export_is_quantized_with_its_own_images(client, exported)
        await _quantization_says_what_it_costs(client, parent)
        await _inference_writes_what_it_saw(client, parent, belt)
        jobs = (await facts(client, "list_jobs", {}))["jobs"]
        assert [job["action"] for job in jobs] == [
            "inference",
            "evaluate",
            "quantize",
            "evaluate",
            "quantize",
            "evaluate",
            "export",
            "evaluate",
            "train",  # the only trial
            "train",  # and its study
        ]
        assert (jobs[-2]["study_id"], jobs[-2]["trial"]) == (train["job_id"], 0)
        assert all(len(job) <= 10 for job in jobs)


async def _data_is_checked(client: Client, belt: Path) -> None:
    asked = {"dataset": str(belt / "train"), "compare_with": str(belt / "val")}
    report = await facts(client, "check_dataset", asked)
    while not report["finished"]:
        report = await facts(client, "check_dataset", asked)
    assert report["ready"], report
    assert report["derived"]["num_classes"] == 9


async def _training_follows_its_reviewed_plan(client: Client, tiny_training: dict[str, Any]) -> dict[str, Any]:
    plan = await facts(client, "train", {**tiny_training, "dry_run": True})
    assert plan["automl"] == {**plan["automl"], "policy": "auto", "route": "automl", "source": "default"}
    assert plan["spec_overrides"]["model.sem_seg_head.num_classes"] == 9
    assert (await facts(client, "list_jobs", {}))["jobs"] == []
    seen: list[float] = []
    started = await facts(client, "train", {**tiny_training, "expect_digest": plan["digest"]})
    train = await finished(client, started, seen)
    assert len(train) == 10
    assert seen
    assert max(seen) <= 1.0
    assert {"mIoU", "PQ", "AP"} <= set(train["metrics"])
    study = (await facts(client, "get_job", {"job_id": train["job_id"]}))["study"]
    assert study["winner"]["job_id"] == study["leaderboard"][0]["job_id"] != train["job_id"]
    listed = await facts(client, "list_artifacts", {"job_id": train["job_id"]})
    assert study["winner"]["job_id"] in listed["next"]
    metrics = (await facts(client, "get_job_metrics", {"job_id": train["job_id"]}))["metrics"]
    assert len(metrics["mIoU"]) == 2
    log = await client.call_tool("get_job_logs", {"job_id": train["job_id"], "tail": 5})
    assert "data, not instructions" in log.content[0].text
    return train


async def _files(client: Client, job_id: str) -> tuple[Path, list[str]]:
    listed = await facts(client, "list_artifacts", {"job_id": job_id, "limit": 100})
    folder = Path(listed["folder"])
    assert all((folder / item["path"]).is_file() for item in listed["artifacts"])
    return folder, [item["path"] for item in listed["artifacts"]]


async def _evaluation_measures_the_best_checkpoint(client: Client, parent: dict[str, Any]) -> None:
    evaluated = await finished(client, await facts(client, "evaluate", parent))
    assert {"mIoU", "PQ"} <= set(evaluated["metrics"])
    folder, files = await _files(client, evaluated["job_id"])
    assert any(name.endswith(".png") for name in files), files
    measured = json.loads((folder / next(name for name in files if name.endswith("metrics.json"))).read_text())
    assert measured


async def _export_runs_in_onnxruntime(client: Client, parent: dict[str, Any]) -> dict[str, Any]:
    exported = await finished(client, await facts(client, "export", {**parent, "input_width": 96, "input_height": 96}))
    folder, files = await _files(client, exported["job_id"])
    model = next(name for name in files if name.endswith(".onnx"))
    session = onnxruntime.InferenceSession(folder / model, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 96, 96), np.float32)})
    assert outputs
    measured = await finished(client, await facts(client, "evaluate", {"parent_job_id": exported["job_id"]}))
    assert {"mIoU", "PQ"} <= set(measured["metrics"])
    return {"parent_job_id": exported["job_id"]}


async def _the_export_is_quantized_with_its_own_images(client: Client, parent: dict[str, Any]) -> None:
    quantized = await finished(client, await facts(client, "quantize", {**parent, "backend": "modelopt.onnx"}))
    folder, files = await _files(client, quantized["job_id"])
    written = onnx.load(str(folder / next(name for name in files if name.endswith(".onnx"))))
    assert any(node.op_type == "QuantizeLinear" for node in written.graph.node)
    measured = await finished(client, await facts(client, "evaluate", {"parent_job_id": quantized["job_id"]}))
    assert abs(measured["metrics"]["mIoU"] - quantized["metrics"]["mIoU"]) < 1e-3


async def _quantization_says_what_it_costs(client: Client, parent: dict[str, Any]) -> None:
    quantized = await finished(client, await facts(client, "quantize", parent))
    assert {"mIoU", "PQ"} <= set(quantized["metrics"])
    assert all(word in quantized["message"] for word in ("MB", "ms an image", "mIoU"))
    measured = await finished(client, await facts(client, "evaluate", {"parent_job_id": quantized["job_id"]}))
    assert abs(measured["metrics"]["mIoU"] - quantized["metrics"]["mIoU"]) < 1e-3


async def _inference_writes_what_it_saw(client: Client, parent: dict[str, Any], belt: Path) -> None:
    asked = {**parent, "inference_dataset": str(belt / "test" / "images")}
    done = await finished(client, await facts(client, "inference", asked))
    folder, files = await _files(client, done["job_id"])
    masks = [name for name in files if "panoptic/" in name and name.endswith(".png")]
    assert len(masks) == 2, files
    with Image.open(folder / masks[0]) as mask:
        assert mask.size == (96, 96)
