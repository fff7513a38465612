"""NVIDIA's schema dialect, read as standard JSON Schema 2020-12.

Their packaged schemas hold the literal `Infinity`, types of their own (`int`, `float`, `bool`, `list`, `categorical`,
`collection`, ...), and lists among the entries of `properties`. The conversion keeps every keyword that is not in the
way, so that the TAO keywords stay where they were.
"""

import math
from collections.abc import Mapping
from typing import Any

_TYPES: Mapping[str, str] = {
    "int": "integer",
    "ordered_int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "string",
    "list": "array",
    "optional_list": "array",
    "subset_list": "array",
    "dict": "object",
    "collection": "object",
}
_STANDARD = {"string", "integer", "number", "boolean", "array", "object", "null"}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_TEXTS = ("title", "description", "pattern", "$comment")
_JSON_NAMES: Mapping[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def is_standard(schema: Any) -> bool:
    """Whether nothing in it needs conversion: standard types, finite numbers, schemas only among properties."""
    if not isinstance(schema, Mapping):
        return False
    kinds = schema.get("type", [])
    if not set([kinds] if isinstance(kinds, str) else kinds) <= _STANDARD:
        return False
    if any(not _finite(schema[bound]) for bound in _BOUNDS if bound in schema):
        return False
    return all(is_standard(node) for node in schema.get("properties", {}).values())


def standard(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema in the standard's words. Unknown keys become errors: blocks are closed, as Hydra closes them.

    Lists found among `properties` (`automl_disabled_parameters`) move up beside it.
    """
    written = {name: value for name, value in schema.items() if not _in_the_way(name, value)}
    if "properties" in schema:
        blocks = schema["properties"]
        written["type"] = "object"
        written["properties"] = {name: standard(node) for name, node in blocks.items() if isinstance(node, Mapping)}
        written.update({name: node for name, node in blocks.items() if not isinstance(node, Mapping)})
        written.setdefault("additionalProperties", False)
        return written
    kind = _kind(schema)
    if kind is None:
        written.pop("type", None)
    else:
        written["type"] = kind
    if isinstance(schema.get("items"), Mapping):
        written["items"] = standard(schema["items"])
    return written


def _kind(schema: Mapping[str, Any]) -> str | list[str] | None:
    """The standard type of a leaf; None where the dialect's word says nothing about it. A null default allows null."""
    said = schema.get("type")
    if not isinstance(said, str):
        return said
    found: str | list[str] | None = _TYPES.get(said, said if said in _STANDARD else None)
    if said in ("categorical", "ordered"):
        kinds = sorted({_JSON_NAMES.get(type(choice), "null") for choice in schema.get("enum", ())})
        found = kinds[0] if len(kinds) == 1 else None
    elif said.startswith("list_"):
        found = "array"
    if isinstance(found, str) and "default" in schema and schema["default"] is None:
        return [found, "null"]
    return found


def _in_the_way(name: str, value: Any) -> bool:
    """Keywords with a value that the standard refuses and that says nothing: endless bounds, null texts, no choices."""
    if name in _BOUNDS:
        return not _finite(value)
    if name in _TEXTS:
        return not isinstance(value, str)
    if name == "required":
        return not isinstance(value, list)
    return name == "enum" and not value


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
