"""The list of tools: what every client reads first, so its size, shape and truth are fixed here."""

import json
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.types import Tool

from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services

NAMES = [
    "train", "evaluate", "export", "quantize", "inference", "gen_trt_engine", "doctor", "check_dataset", "search_spec",
    "list_jobs", "get_job", "wait_for_job", "get_job_logs", "get_job_metrics", "list_artifacts", "cancel_job",
    "delete_job", "resume_job",
]  # fmt: skip
STARTS = {*NAMES[:6], "resume_job"}  # a job may fetch from S3, fetch published weights, pull images
READ_ONLY = {
    "doctor", "check_dataset", "search_spec", "list_jobs", "get_job", "wait_for_job", "get_job_logs", "get_job_metrics",
    "list_artifacts",
}  # fmt: skip
COMMON = {
    "overrides", "dataset_format", "platform", "runtime", "image", "num_gpus", "num_nodes", "results_dir", "run_name",
    "expect_digest", "dry_run",
}  # fmt: skip
ARGUMENTS = {
    "train": "train_dataset eval_dataset preset mode backbone num_classes contiguous_id num_epochs batch_size "
    "learning_rate pretrained_weights parent_job_id checkpoint automl_policy request automl",
    "evaluate": "eval_dataset train_dataset parent_job_id checkpoint trt_engine",
    "export": "parent_job_id checkpoint format mode input_width input_height batch_size opset_version",
    "quantize": "parent_job_id model_path backend quantize_mode algorithm train_dataset eval_dataset",
    "inference": "inference_dataset eval_dataset train_dataset parent_job_id checkpoint trt_engine mode threshold",
    "gen_trt_engine": "parent_job_id onnx_file data_type min_batch_size opt_batch_size max_batch_size workspace_size",
    "doctor": "platform",
    "check_dataset": "dataset dataset_format role compare_with sample",
    "search_spec": "action query limit",
    "wait_for_job": "job_id timeout_s",
    "cancel_job": "job_id confirm",
    "delete_job": "job_id confirm",
    "resume_job": "job_id num_epochs automl",
}


def listed(tmp_path: Any) -> list[Tool]:
    async def ask() -> list[Tool]:
        async with Client(build(Services({"M2F_HOME": str(tmp_path)}), reconcile=False)) as client:
            return (await client.list_tools()).tools

    return anyio.run(ask)


@pytest.fixture
def tools(tmp_path) -> list[Tool]:
    return listed(tmp_path)


def as_json(tools: list[Tool]) -> str:
    return json.dumps(
        [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools], separators=(",", ":")
    )


def test_the_names_stay_fixed(tools):
    assert [tool.name for tool in tools] == NAMES


def test_the_whole_list_stays_within_30000_characters_of_compact_json(tools):
    assert len(as_json(tools)) <= 30_000


def test_the_list_is_the_same_every_time(tools, tmp_path):
    assert as_json(tools) == as_json(listed(tmp_path / "another home"))


def test_no_schema_holds_a_reference_a_title_or_a_null_arm(tools):
    for tool in tools:
        text = json.dumps(tool.input_schema) + json.dumps(tool.output_schema)
        assert "$ref" not in text, tool.name
        assert "$defs" not in text, tool.name
        assert '"title"' not in text, tool.name
        assert '{"type": "null"}' not in json.dumps(tool.input_schema), tool.name


def test_unknown_arguments_are_refused_by_the_schema_too(tools):
    assert all(tool.input_schema["additionalProperties"] is False for tool in tools)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_are_the_documented_ones(name, tools):
    tool = next(tool for tool in tools if tool.name == name)
    expected = set(ARGUMENTS[name].split()) | (COMMON if name in NAMES[:6] else set())
    assert set(tool.input_schema["properties"]) == expected


def test_every_tool_says_all_four_annotations_and_they_are_true(tools):
    for tool in tools:
        hints = tool.annotations
        assert hints is not None, tool.name
        assert None not in (
            hints.read_only_hint,
            hints.destructive_hint,
            hints.idempotent_hint,
            hints.open_world_hint,
        ), tool.name
        assert hints.read_only_hint is (tool.name in READ_ONLY), tool.name
        assert hints.destructive_hint is (tool.name in {"cancel_job", "delete_job"}), tool.name
        assert hints.idempotent_hint is (tool.name not in STARTS), tool.name
        assert hints.open_world_hint is (tool.name in STARTS | {"doctor", "check_dataset"}), tool.name


def test_every_tool_is_described_and_has_an_output_schema_of_an_object(tools):
    for tool in tools:
        assert tool.description, tool.name
        assert tool.output_schema is not None, tool.name
        assert tool.output_schema["type"] == "object", tool.name


def test_an_error_says_that_nothing_was_started_only_where_something_could_have_been(tmp_path):
    async def ask() -> dict[str, str]:
        async with Client(build(Services({"M2F_HOME": str(tmp_path)}), reconcile=False)) as client:
            refused = {name: await client.call_tool(name, {"no_such_argument": 1}) for name in NAMES}
            return {name: answer.content[0].text for name, answer in refused.items()}

    assert {name for name, text in anyio.run(ask).items() if "Nothing was started" in text} == STARTS
