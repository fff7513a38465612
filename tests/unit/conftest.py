"""A skill folder as NVIDIA publishes it, made from the facts."""

import json
from pathlib import Path
from typing import Any

import pytest

FACTS = Path(__file__).resolve().parents[1] / "facts"
SPEC = json.loads((FACTS / "mask2former-spec-fields.json").read_text())
ACTIONS = ("train", "evaluate", "export", "inference", "quantize", "gen_trt_engine")


def nvidia_schema(action: str) -> dict[str, Any]:
    """The facts as their packaged schemas write them: own types, Infinity, a list among the properties."""
    root: dict[str, Any] = {"type": "collection", "properties": {}, "x_tao_schema": {**SPEC["x_tao_schema"]}}
    for key, fact in SPEC["fields"].items():
        if fact["actions"] != "all" and action not in fact["actions"]:
            continue
        *blocks, leaf = key.split(".")
        node = root
        for name in blocks:
            node = node["properties"].setdefault(name, {"type": "collection", "properties": {}})
        entry = {name: value for name, value in fact.items() if name != "actions"}
        if entry["type"] in ("int", "float"):
            entry = {"minimum": -float("inf"), "maximum": float("inf"), **entry}
        node["properties"][leaf] = {"title": None, "automl_enabled": False, **entry}
    root["properties"]["automl_disabled_parameters"] = SPEC["automl_disabled_parameters"]
    root["properties"]["train"]["properties"]["automl_disabled_parameters"] = ["optim", "cudnn"]
    return {
        **root,
        "automl_default_parameters": SPEC["automl_default_parameters"],
        "required": SPEC["required"][action],
    }


@pytest.fixture
def nvidia_folder(tmp_path: Path) -> Path:
    root = tmp_path / "tao-train-mask2former"
    (root / "schemas").mkdir(parents=True)
    (root / "references").mkdir()
    for action in ACTIONS:
        (root / "schemas" / f"{action}.schema.json").write_text(json.dumps(nvidia_schema(action)))
    for template in (FACTS / "templates").iterdir():
        (root / "references" / template.name).write_text(template.read_text())
    (root / "references" / "skill_info.yaml").write_text((FACTS / "mask2former-skill-info.yaml").read_text())
    (root / "references" / "skill_info.deploy.yaml").write_text(
        (FACTS / "mask2former-deploy-skill-info.yaml").read_text()
    )
    return root
