"""JSON Schemas as agents should read them: no `$ref`, no titles, no null arms, deterministic.

Clients differ in how they treat `$ref`; several pass it on to a model that cannot resolve it. Every definition is
therefore written out where it is used. `None` stays a legal value (it means "not said"), but an optional argument is
advertised by its type alone: `anyOf: [.., null]` with `default: null` says nothing more and costs a third of the list.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
_DEFINITIONS = "#/$defs/"
_ANY_KEY = ("additionalProperties", True)  # the default of JSON Schema, said aloud by pydantic


def input_schema(model: type[BaseModel]) -> Schema:
    """The argument schema of one tool. Raises RecursionError for a model that contains itself."""
    raw = model.model_json_schema()
    schema = _inlined(raw, raw.get("$defs", {}))
    return {
        "type": "object",
        "properties": schema.get("properties", {}),
        **({"required": schema["required"]} if schema.get("required") else {}),
        "additionalProperties": False,
    }


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        named = definitions[node["$ref"].removeprefix(_DEFINITIONS)]
        node = {**named, **{key: value for key, value in node.items() if key != "$ref"}}
    kept = {key: value for key, value in node.items() if not _is_noise(key, value)}
    if "properties" in kept:  # a property may be called "title" or "default": its name is not a keyword
        kept["properties"] = {name: _inlined(value, definitions) for name, value in node["properties"].items()}
        kept.pop("description", None)  # a model's docstring is for readers of the code
    rest = {key: value if key == "properties" else _inlined(value, definitions) for key, value in kept.items()}
    return _without_null(rest)


def _is_noise(key: str, value: Any) -> bool:
    return key in ("title", "$defs") or (key == "default" and value is None) or (key, value) == _ANY_KEY


def _without_null(schema: Schema) -> Schema:
    """`anyOf: [X, null]` becomes X, keeping what stands beside it (the description)."""
    arms = schema.get("anyOf")
    if not isinstance(arms, list) or {"type": "null"} not in arms:
        return schema
    left = [arm for arm in arms if arm != {"type": "null"}]
    beside = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**left[0], **beside} if len(left) == 1 else {"anyOf": left, **beside}
