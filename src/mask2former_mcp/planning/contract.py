"""What the bundle says about one action: its schema and template, its command, what it must leave behind.

An action on a TensorRT engine under TAO follows the deploy twin instead: another image with a smaller spec.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mask2former_mcp.bundle import Bundle
from mask2former_mcp.errors import BundleError
from mask2former_mcp.planning import validate
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.field import ENGINE_ONLY

_ARTIFACTS = {
    "train": ("train/model_epoch_*.pth",),
    "evaluate": ("evaluate/status.json",),
    "inference": ("inference/*",),
    "quantize": ("quantize/*",),
}


@dataclass(frozen=True, slots=True)
class Contract:
    """What one plan follows. `source` is the bundle or its deploy twin; `refused`: keys that the runtime's config does
    not know, so that they are left out of the spec."""

    source: Bundle
    schema: Mapping[str, Any]
    template: Mapping[str, Any]
    known: frozenset[str] | None = None  # all that the config knows; None: whatever the schema has
    refused: frozenset[str] = frozenset()

    def fitting(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those flat values that the config takes."""
        return {
            key: value
            for key, value in values.items()
            if key not in self.refused and (self.known is None or key in self.known)
        }


def terms(
    bundle: Bundle, action: str, schema: Mapping[str, Any], template: Mapping[str, Any], *, runtime: str, tensorrt: bool
) -> Contract:
    """The contract of an action where it runs. `schema` and `template` are the bundle's own (`spec_parts`)."""
    if runtime != "tao":
        return Contract(bundle, schema, template)
    deploy = bundle.deploy
    if tensorrt and deploy is not None and action in deploy.actions:
        # Each of its templates holds a part of one config; blocks of its other actions name files of nobody's.
        parts = {name: _own_blocks(deploy.template(name), name, deploy) for name in deploy.actions}
        known = frozenset(key for part in parts.values() for key in dotted.flatten(part))
        return Contract(deploy, schema, parts[action], known)
    refused = frozenset(_engine_only(schema))
    flat = {key: value for key, value in dotted.flatten(template).items() if key not in refused}
    return Contract(bundle, schema, dotted.unflatten(flat), refused=refused)


def _own_blocks(template: Mapping[str, Any], action: str, bundle: Bundle) -> dict[str, Any]:
    return {name: block for name, block in template.items() if name == action or name not in bundle.actions}


def _engine_only(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, node in schema.get("properties", {}).items():
        if isinstance(node, Mapping) and node.get("properties"):
            yield from _engine_only(node, f"{prefix}{name}.")
        elif isinstance(node, Mapping) and node.get(ENGINE_ONLY):
            yield prefix + name


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
            raise _without_spec(bundle, action, error) from error
        return schema, schema["default"], [f"the schema's defaults are the template: {error.message}"]


def _without_spec(bundle: Bundle, action: str, error: BundleError) -> BundleError:
    """Neither schema nor template: not even direct training has a spec to start from."""
    message = f"{action} has neither a schema with defaults nor a template: {error.message}"
    if action == "train" and bundle.automl_enabled:
        message += "; AutoML is enabled for this model but not runnable until its schemas are generated"
    return BundleError(message, fix=error.fix)


def owners(bundle: Bundle, key: str) -> tuple[str, ...]:
    """The actions whose specs have this key, or keys below it."""
    return tuple(action for action in bundle.actions if _has(bundle, action, key))


def _has(bundle: Bundle, action: str, key: str) -> bool:
    try:
        schema, template, _ = spec_parts(bundle, action)
    except BundleError:
        return False
    return any(leaf == key or leaf.startswith(f"{key}.") for leaf in validate.leaf_keys(schema, template))


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
