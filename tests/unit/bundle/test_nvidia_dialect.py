"""A skill folder in NVIDIA's own dialect, made from the facts, is read as if it were ours."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mask2former_mcp import bundle
from mask2former_mcp.errors import BundleError
from mask2former_mcp.spec import dotted

FACTS = Path(__file__).resolve().parents[2] / "facts"
SPEC = json.loads((FACTS / "mask2former-spec-fields.json").read_text())
ACTIONS = ("train", "evaluate", "export", "inference", "quantize", "gen_trt_engine")


def test_it_has_our_actions_the_sixth_from_its_deploy_twin(nvidia_folder: Path) -> None:
    theirs = bundle.load(nvidia_folder)
    assert theirs.name == "tao-train-mask2former"
    assert set(theirs.actions) == set(ACTIONS)
    assert theirs.deploy is not None
    assert "gen_trt_engine.onnx_file" in theirs.spec_params("gen_trt_engine")
    assert theirs.command("gen_trt_engine") == ("mask2former", "gen_trt_engine", "-e", "{config_path}")
    assert theirs.automl_enabled
    assert theirs.automl_runnable() is None


@pytest.mark.parametrize("action", ACTIONS)
def test_a_schema_becomes_standard_and_accepts_the_template(nvidia_folder: Path, action: str) -> None:
    theirs = bundle.load(nvidia_folder)
    schema = theirs.schema(action)
    Draft202012Validator.check_schema(schema)
    json.dumps(schema, allow_nan=False)
    Draft202012Validator(schema).validate(theirs.template(action))


def test_the_published_text_really_holds_infinity(nvidia_folder: Path) -> None:
    assert "Infinity" in (nvidia_folder / "schemas" / "train.schema.json").read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.num_epochs", "10"),
        ("train.num_epochs", 0),
        ("train.optim.lr", 2),
        ("train.precision", "bf16"),
        ("train.precison", "fp16"),
        ("wandb.enable", "yes"),
        ("quantize.device", "tpu"),
    ],
)
def test_the_converted_schema_refuses_what_it_should(nvidia_folder: Path, key: str, value: Any) -> None:
    theirs = bundle.load(nvidia_folder)
    merged = dotted.flatten(theirs.template("train")) | {key: value}
    assert list(Draft202012Validator(theirs.schema("train")).iter_errors(dotted.unflatten(merged)))


def test_the_tao_keywords_stay_and_the_lists_move_out_of_the_properties(nvidia_folder: Path) -> None:
    schema = bundle.load(nvidia_folder).schema("train")
    assert schema["automl_disabled_parameters"] == SPEC["automl_disabled_parameters"]
    assert "automl_disabled_parameters" not in schema["properties"]
    assert schema["properties"]["train"]["automl_disabled_parameters"] == ["optim", "cudnn"]
    rate = schema["properties"]["train"]["properties"]["optim"]["properties"]["lr"]
    assert rate["automl_enabled"] is True
    assert rate["math_cond"] == "> 0.0"


def test_rows_that_do_not_say_which_format_reads_them_learn_it_from_our_bundle(nvidia_folder: Path) -> None:
    ours = {row.key: row.formats for row in bundle.load().data_sources("train")}
    theirs = bundle.load(nvidia_folder).data_sources("train")
    assert len(theirs) == 10
    assert all(row.formats == ours[row.key] for row in theirs)
    assert {row.runtime for row in theirs if str(row.path).endswith(".tar.gz")} == {"extracted_folder"}


def test_a_rule_by_format_in_the_table_is_understood(nvidia_folder: Path) -> None:
    path = nvidia_folder / "references" / "skill_info.yaml"
    rule = "'coco_panoptic: label_map_panoptic.json; *: label_map.json'"
    path.write_text(path.read_text().replace("path: label_map_panoptic.json", f"path: {rule}"))
    (row,) = [row for row in bundle.load(nvidia_folder).data_sources("train") if row.key == "dataset.label_map"]
    assert (row.file_name("coco_panoptic"), row.file_name("coco")) == ("label_map_panoptic.json", "label_map.json")


@pytest.mark.parametrize("missing", ["schemas/train.schema.json", "references/spec_template_train.yaml"])
def test_without_schema_or_template_automl_is_enabled_but_not_runnable(nvidia_folder: Path, missing: str) -> None:
    (nvidia_folder / missing).unlink()
    theirs = bundle.load(nvidia_folder)
    assert theirs.automl_enabled
    assert missing in (theirs.automl_runnable() or "")


def test_a_bundle_of_another_model_is_read_without_new_code(nvidia_folder: Path) -> None:
    path = nvidia_folder / "references" / "skill_info.yaml"
    text = (
        path.read_text().replace("network_arch: mask2former", "network_arch: segnet").replace("mask2former ", "segnet ")
    )
    path.write_text(text)
    (nvidia_folder / "references" / "skill_info.deploy.yaml").unlink()
    for schema in (nvidia_folder / "schemas").iterdir():
        schema.write_text(schema.read_text().replace('"network_arch": "mask2former"', '"network_arch": "segnet"'))
    theirs = bundle.load(nvidia_folder)
    assert theirs.network_arch == "segnet"
    assert theirs.command("train")[0] == "segnet"
    assert all(row.formats is None and row.is_read("coco") for row in theirs.data_sources("train"))
    assert theirs.automl_runnable() is None


@pytest.mark.parametrize("broken", [{"pattern": "("}, {"minLength": "three"}])
@pytest.mark.parametrize("whose", ["nvidia", "standard"])
def test_a_broken_schema_is_refused_by_name_in_either_dialect(
    nvidia_folder: Path, whose: str, broken: dict[str, str]
) -> None:
    path = nvidia_folder / "schemas" / "train.schema.json"
    schema = json.loads(path.read_text()) if whose == "nvidia" else bundle.load().schema("train")
    schema["properties"]["model_name"] |= broken
    path.write_text(json.dumps(schema))
    with pytest.raises(BundleError, match=r"train\.schema\.json.*no JSON Schema"):
        bundle.load(nvidia_folder).schema("train")
