"""The generated files: valid, strict JSON, up to date; the script notices when they are not."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import ACTIONS, load
from mask2former_mcp.spec.files import generated
from mask2former_mcp.spec.schema import action_schema, leaves

ROOT = Path(__file__).resolve().parents[3]


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "generate"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("action", ACTIONS)
def test_a_schema_is_valid_and_standard(action: str) -> None:
    text = generated()[f"schemas/{action}.schema.json"]
    schema = json.loads(text, parse_constant=refuse_constant)
    Draft202012Validator.check_schema(schema)
    standard = {"string", "integer", "number", "boolean", "array", "object", "null"}
    for key, leaf in leaves(schema):
        kinds = leaf["type"] if isinstance(leaf["type"], list) else [leaf["type"]]
        assert set(kinds) <= standard, key
        assert leaf["description"].strip(), key
        if leaf["type"] == "array":
            assert "items" in leaf, key
    assert "$ref" not in text
    assert "$defs" not in text


@pytest.mark.parametrize("action", ACTIONS)
def test_a_template_is_valid_against_its_schema_and_is_its_default(action: str) -> None:
    files = generated()
    schema = json.loads(files[f"schemas/{action}.schema.json"])
    template = yaml.safe_load(files[f"references/spec_template_{action}.yaml"])
    Draft202012Validator(schema).validate(template)
    assert template == schema["default"]


@pytest.mark.parametrize("name", ["gen_trt_engine", "evaluate", "inference"])
def test_a_deploy_template_is_valid_against_the_schema_of_its_action(name: str) -> None:
    files = generated()
    schema = json.loads(files[f"schemas/{name}.schema.json"])
    template = yaml.safe_load(files[f"references/spec_template_deploy_{name}.yaml"])
    # The deploy image's one spec serves both of its verbs; a schema knows the block of its own action only.
    foreign = {"evaluate", "inference"} - {name}
    Draft202012Validator(schema).validate({key: value for key, value in template.items() if key not in foreign})
    load("train", template)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.num_epoch", 3),
        ("train.num_epochs", "10"),
        ("train.optim.lr", 0),
        ("train.precision", "int8"),
        ("dataset.val.target_size", [640]),
        ("dataset.val.target_size", [640, 640, 3]),
        ("model.backbone.swin.depths", [1, 1]),
        ("model.mask_former.hidden_dim", 100),
        ("train.gpu_ids", []),
        ("train.gpu_ids", [0, 0]),
    ],
)
def test_the_schema_refuses_what_the_engine_would(key: str, value: Any) -> None:
    mapping = dotted.unflatten({key: value})
    assert list(Draft202012Validator(action_schema("train")).iter_errors(mapping))
    if value != [0, 0]:  # GPUs named twice are left to the schema
        with pytest.raises(ValueError, match=re.escape(key)):
            load("train", mapping)


def test_a_search_range_is_legal_and_what_decides_the_metric_is_frozen() -> None:
    found = {key: leaf["x-m2f-search"] for key, leaf in leaves(action_schema("train")) if "x-m2f-search" in leaf}
    enabled = {key for key, search in found.items() if search["enabled"]}
    assert enabled == {"train.optim.lr", "train.optim.backbone_multiplier", "train.optim.weight_decay"}
    assert all(found[key]["scale"] == "log" and found[key]["factor"] == 10 for key in enabled)
    for key in (
        "dataset.contiguous_id",
        "model.sem_seg_head.num_classes",
        "dataset.augmentation.test_min_size",
        "dataset.augmentation.test_max_size",
        "dataset.augmentation.train_crop_size",
        "train.optim.momentum",
    ):
        assert found[key]["frozen"]
        assert not found[key]["enabled"]
    for key, search in found.items():
        leaf = dict(leaves(action_schema("train")))[key]
        low, high = leaf.get("minimum", -math.inf), leaf.get("maximum", math.inf)
        for value in [search.get("low", low), search.get("high", high)]:
            assert low <= value <= high, key
        for choice in search.get("choices", []):
            assert leaf["default"] is not None
            Draft202012Validator(leaf).validate(choice)


def test_the_committed_files_are_what_the_spec_generates() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_names_what_differs_is_missing_or_does_not_belong(tmp_path: Path) -> None:
    for part in ("schemas", "references"):
        shutil.copytree(ROOT / part, tmp_path / part)
    changed = tmp_path / "schemas" / "train.schema.json"
    changed.write_text(changed.read_text().replace("Optimiser.", "Optimizer."))
    (tmp_path / "references" / "spec_template_export.yaml").unlink()
    (tmp_path / "references" / "spec_template_prune.yaml").write_text("{}")
    done = generate("--check", "--root", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "missing: references/spec_template_export.yaml",
        "differs: schemas/train.schema.json",
        "not generated by the spec: references/spec_template_prune.yaml",
    ]


def test_writing_makes_check_clean_and_is_deterministic(tmp_path: Path) -> None:
    assert generate("--root", str(tmp_path)).returncode == 0
    assert generate("--check", "--root", str(tmp_path)).returncode == 0
    assert generate("--root", str(tmp_path)).stdout == ""
