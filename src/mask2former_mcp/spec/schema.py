"""The JSON Schema of an action: standard 2020-12, with the TAO keywords beside the standard ones."""

from collections.abc import Iterator, Mapping
from typing import Any

from mask2former_mcp.spec.experiment import ACTIONS, Experiment

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SOURCE = "mask2former_mcp.spec"
_KEPT_LAST = "quantize"
"""The block that every action's spec carries."""


def action_schema(action: str) -> dict[str, Any]:
    """Schema of `<action>`'s spec: the shared blocks, the action's own, and `quantize`, in the template's order.

    ValueError for an unknown action.
    """
    if action not in ACTIONS:
        raise ValueError(f"unknown action '{action}': one of {', '.join(ACTIONS)}")
    whole = _inlined(Experiment.model_json_schema())
    foreign = set(ACTIONS) - {action, "train", _KEPT_LAST}
    properties = {name: value for name, value in whole["properties"].items() if name not in foreign}
    body = {"type": "object", "properties": properties, "additionalProperties": False}
    return {
        "$schema": DIALECT,
        "title": f"mask2former {action}",
        "description": f"Experiment spec of `mask2former {action}`. Generated from {SOURCE}; do not edit.",
        **body,
        "default": defaults(body),
        "automl_default_parameters": [key for key, leaf in sorted(leaves(body)) if leaf.get("automl_enabled")],
        "automl_disabled_parameters": sorted(_unsearchable(body)),
        "popular": _popular(body),
        "x_tao_schema": {
            "action": action,
            "core_module": "mask2former",
            "model": "mask2former",
            "network_arch": "mask2former",
            "schema_action": action,
            "schema_version": 1,
            "source": SOURCE,
        },
    }


def leaves(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted key, its schema) of every leaf: what has no properties of its own."""
    for name, node in schema.get("properties", {}).items():
        if "properties" in node:
            yield from leaves(node, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", node


def defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Nested defaults. A leaf that may be null and is by default has no place in a template: it is left out."""
    nested: dict[str, Any] = {}
    for name, node in schema["properties"].items():
        if "properties" in node:
            nested[name] = defaults(node)
        elif node["default"] is not None:
            nested[name] = node["default"]
    return nested


def _unsearchable(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys that no search may set: blocks, lists, mappings, and leaves whose range is frozen."""
    for name, node in schema["properties"].items():
        frozen = "frozen" in node.get("x-m2f-search", {}) and not node.get("automl_enabled")
        if frozen or node.get("type") in ("object", "array"):
            yield prefix + name
        if "properties" in node:
            yield from _unsearchable(node, f"{prefix}{name}.")


def _popular(schema: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, node in schema["properties"].items():
        if "properties" in node:
            if inner := _popular(node):
                nested[name] = inner
        elif node.get("popular"):
            nested[name] = node["default"]
    return nested


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """pydantic's schema with its `$defs` written out in place and without titles; each block has its own help."""
    definitions = schema.pop("$defs")

    def plain(node: Any) -> Any:
        if isinstance(node, list):
            return [plain(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[-1]
            node = {**definitions[name], **{key: value for key, value in node.items() if key != "$ref"}}
        if "properties" in node:
            blocks = {name: plain(value) for name, value in node["properties"].items()}
            return {**_tidy(node), "properties": blocks}
        return {key: value if key in ("default", "enum") else plain(value) for key, value in _tidy(node).items()}

    written: dict[str, Any] = plain(schema)
    return written


def _tidy(node: dict[str, Any]) -> dict[str, Any]:
    """Without title; a nullable leaf as a list of types; a single choice as `enum` like the others."""
    tidy = {key: value for key, value in node.items() if key != "title"}
    if "anyOf" in tidy:
        (some,) = [branch for branch in tidy.pop("anyOf") if branch.get("type") != "null"]
        tidy = {**some, "type": [some["type"], "null"], **tidy}
    if "const" in tidy and "type" in tidy:
        tidy["enum"] = [tidy.pop("const")]
    if tidy.get("type") == "object" and "properties" not in tidy:
        # A free mapping: pydantic's way of saying it, without the noise.
        tidy["additionalProperties"] = True
    return tidy
