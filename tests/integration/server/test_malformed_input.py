"""Every wrong input, over every tool: a clear structured error, and no job afterwards.

The first table is made from the advertised schemas, so a new argument is covered the day it appears; the second holds
what only planning can know.
"""

from collections.abc import Iterator
from typing import Any

import anyio
from mcp import Client
from mcp.types import Tool

from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services

REQUIRED = {"job_id": "train-7f3k9q2d", "dataset": "/nowhere"}


def wrong_values(schema: dict[str, Any]) -> Iterator[Any]:
    """Values that a schema excludes: other types, and one beyond each bound."""
    kind = schema.get("type")
    samples = {"string": "text", "integer": 7, "number": 0.5, "boolean": True, "object": {"a": 1}, "array": [1]}
    accepts = {kind} | ({"integer"} if kind == "number" else set())
    yield from (sample for name, sample in samples.items() if name not in accepts)
    if "enum" in schema or "const" in schema:
        yield "not-one-of-them"
    if "minimum" in schema:
        yield schema["minimum"] - 1
    if "exclusiveMinimum" in schema:
        yield schema["exclusiveMinimum"]
    if "maximum" in schema:
        yield schema["maximum"] + 1
    if "pattern" in schema:
        yield "Not Allowed!"
    if kind == "integer":
        yield 2.5


def malformed(tools: list[Tool]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(tool, arguments, the name that the error must mention)."""
    for tool in tools:
        base = {name: REQUIRED[name] for name in tool.input_schema.get("required", [])}
        yield tool.name, {**base, "no_such_argument": 1}, "no_such_argument"
        for name in base:
            yield tool.name, {key: value for key, value in base.items() if key != name}, name
        for name, schema in tool.input_schema["properties"].items():
            for value in wrong_values(schema):
                yield tool.name, {**base, name: value}, name


def in_planning(folder: str) -> list[tuple[str, dict[str, Any]]]:
    def override(key: str, value: Any) -> dict[str, Any]:
        return {"train_dataset": folder, "overrides": {key: value}}

    train: list[dict[str, Any]] = [
        {},
        {"train_dataset": ""},
        {"train_dataset": "/no/such/folder"},
        {"train_dataset": "http://example.com/data"},
        {"train_dataset": "gs://bucket/data"},
        {"train_dataset": folder, "dataset_format": "coco", "mode": "panoptic"},
        {"train_dataset": folder, "num_classes": 2},
        {"train_dataset": folder, "preset": "maxi"},
        {"train_dataset": folder, "parent_job_id": "train-00000000"},
        {"train_dataset": folder, "checkpoint": "/no/such/file.pth"},
        {"train_dataset": folder, "checkpoint": "best"},
        {"train_dataset": folder, "num_gpus": 9999},
        {"train_dataset": folder, "expect_digest": "0" * 64},
        {"train_dataset": folder, "results_dir": folder},
        {"train_dataset": folder, "pretrained_weights": "/no/such/swin.pth"},
        {"train_dataset": folder, "num_epochs": 3, "overrides": {"train.num_epochs": 4}},
        {"train_dataset": folder, "batch_size": 10_000},
        override("train.optim.learning_rate", 0.1),
        override("train.num_epoch", 3),
        override("train.num_epochs", "three"),
        override("train.num_epochs", 0),
        override("train.optim.lr", -1),
        override("train.optim.lr", "${oc.env:HOME}"),
        override("model.backbone.type", "resnet"),
        override("model.mode", "video"),
        override("results_dir", "/tmp/elsewhere"),
        override("train.results_dir", "/tmp/elsewhere"),
        override("train.resume_training_checkpoint_path", "/tmp/x.pth"),
        override("train.precision", "int8"),
        override("dataset.train.type", "video"),
        override("model", "big"),
        override("", 1),
        override("..", 1),
        override("train..num_epochs", 1),
        {"train_dataset": folder, "overrides": {"train": {"num_epochs": "x"}}},
        {"train_dataset": folder, "overrides": {"train": {"epochs": 1}}},
        {"train_dataset": "s3://bucket/data"},
    ]
    others: list[tuple[str, dict[str, Any]]] = [
        (action, {"parent_job_id": "train-00000000"})
        for action in ("evaluate", "export", "quantize", "inference", "gen_trt_engine")
    ]
    others += [(action, {}) for action in ("evaluate", "export", "inference", "quantize", "gen_trt_engine")]
    others += [("export", {"checkpoint": "/no/such.pth"}), ("evaluate", {"eval_dataset": "/no/such/folder"})]
    others += [
        (tool, {"job_id": job_id, **({"confirm": True} if tool in ("cancel_job", "delete_job") else {})})
        for tool in (
            "get_job",
            "wait_for_job",
            "get_job_logs",
            "get_job_metrics",
            "list_artifacts",
            "cancel_job",
            "delete_job",
            "resume_job",
        )
        for job_id in ("train-00000000", "../../etc/passwd", "train-1'; DROP TABLE jobs; --", "\x00")
    ]
    others += [
        ("check_dataset", {"dataset": path}) for path in ("/no/such/folder", "", "ftp://x/y", "s3://bucket/data")
    ]
    others += [("list_jobs", {"cursor": "not-a-cursor"}), ("search_spec", {"action": "fly"})]
    return [("train", arguments) for arguments in train] + others


def test_every_malformed_input_is_a_clear_error_and_starts_nothing(environ, belt):
    async def check() -> tuple[int, list[Any]]:
        failures: list[Any] = []
        async with Client(build(Services(environ), reconcile=False)) as client:
            cases = list(malformed((await client.list_tools()).tools))
            for tool, arguments, name in cases:
                result = await client.call_tool(tool, arguments)
                facts = result.structured_content or {}
                if not result.is_error or facts.get("code") != "invalid_request" or name not in facts["message"]:
                    failures.append((tool, arguments, facts))
            planned = in_planning(str(belt))
            for tool, arguments in planned:
                result = await client.call_tool(tool, arguments)
                facts = result.structured_content or {}
                clear = facts.get("message") and facts.get("fix") and facts.get("code") != "internal_error"
                if not (result.is_error and clear and facts.get("started") is False):
                    failures.append((tool, arguments, facts))
            jobs = (await client.call_tool("list_jobs", {})).structured_content
            if jobs["jobs"]:
                failures.append(("list_jobs", {}, jobs))
        return len(cases) + len(planned), failures

    count, failures = anyio.run(check)
    assert count >= 200
    assert not failures, "\n".join(str(failure) for failure in failures[:20])
