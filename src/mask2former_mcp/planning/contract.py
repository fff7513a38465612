"""What the bundle says about one action: its schema and template, its command, what it must leave behind."""

from collections.abc import Mapping
from typing import Any

from mask2former_mcp.bundle import Bundle
from mask2former_mcp.errors import BundleError
from mask2former_mcp.spec import dotted

_ARTIFACTS = {
    "train": ("train/model_epoch_*.pth",),
    "evaluate": ("evaluate/status.json",),
    "inference": ("inference/*",),
    "quantize": ("quantize/*",),
}


def spec_parts(bundle: Bundle, action: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The action's schema and template. One of them can stand in for the other; without both there is no plan."""
    schema: dict[str, Any] | None = None
    notes: list[str] = []
    try:
        schema = bundle.schema(action)
    except BundleError as error:
        notes.append(f"the spec is not checked against a schema: {error.message}")
    try:
        return schema or {}, bundle.template(action), notes
    except BundleError as error:
        if schema is None or not isinstance(schema.get("default"), dict):
            raise
        return schema, schema["default"], [f"the schema's defaults are the template: {error.message}"]


def command(bundle: Bundle, action: str, tensorrt: bool) -> tuple[str, ...]:
    deploy = bundle.deploy
    source = deploy if tensorrt and deploy is not None and action in deploy.actions else bundle
    return tuple(word.replace("{config_path}", "{job_dir}/spec.yaml") for word in source.command(action))


def artifacts(action: str, spec: Mapping[str, Any], bundle: Bundle, tao_tensorrt: bool) -> tuple[str, ...]:
    """Globs below the results folder that a successful job has filled. tao_tensorrt: by TAO's deploy image."""
    if action == "export" and spec["export"].get("format") == "transformers":
        return ("export/transformers/model.safetensors",)
    created = [key for key, function in bundle.spec_params(action).items() if str(function).startswith("create_")]
    if created:
        return tuple(str(dotted.get(spec, key)).removeprefix("{results_dir}/") for key in created)
    return (f"trt_{action}/*",) if tao_tensorrt else _ARTIFACTS[action]


def takes_key(bundle: Bundle, action: str) -> bool:
    return "key" in bundle.spec_params(action).values()
