"""A merged spec against the action's JSON Schema, with errors that name key, value, rule and fix."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.planning.merge import show
from mask2former_mcp.spec import dotted

_SHOWN = 8
_LARGEST = 2**53  # what every JSON reader still tells from its neighbours


def leaf_keys(schema: Mapping[str, Any], template: Mapping[str, Any]) -> frozenset[str]:
    """Every key that a caller may set: leaves of the schema, and of the template where the schema is silent."""
    known, blocks = set(_leaves(schema, "")), set(_blocks(schema, ""))
    own = {key for key in dotted.flatten(template) if key not in blocks and known.isdisjoint(_prefixes(key))}
    return frozenset(known | own)


def _prefixes(key: str) -> set[str]:
    """`a.b.c` -> a, a.b, a.b.c."""
    parts = key.split(".")
    return {".".join(parts[: end + 1]) for end in range(len(parts))}


def _leaves(schema: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, node in schema.get("properties", {}).items():
        if not isinstance(node, Mapping):
            continue  # NVIDIA's dialect keeps lists of names among the properties
        if node.get("properties"):
            yield from _leaves(node, f"{prefix}{name}.")
        else:
            yield prefix + name


def _blocks(schema: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, node in schema.get("properties", {}).items():
        if isinstance(node, Mapping) and node.get("properties"):
            yield prefix + name
            yield from _blocks(node, f"{prefix}{name}.")


def check_schema(spec: Mapping[str, Any], schema: Mapping[str, Any], remarks: Mapping[str, str]) -> None:
    """InvalidRequest with every problem, at most 8 spelled out. `remarks` adds a sentence for a key."""
    _refuse_unreal_numbers(spec)
    problems = sorted(
        _flat(Draft202012Validator(schema).iter_errors(spec)), key=lambda error: list(map(str, error.path))
    )
    if not problems:
        return
    lines = [_describe(error, remarks) for error in problems]
    shown = lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
    raise InvalidRequest(
        "; ".join(shown),
        fix="; ".join(dict.fromkeys(_fix(error) for error in problems[:_SHOWN])),
        details={"problems": lines[:_SHOWN]},
    )


def missing_values(spec: Mapping[str, Any]) -> list[str]:
    """Keys that still hold `???`, the mark of a value that must be given."""
    return [key for key, value in dotted.flatten(spec).items() if value == "???"]


def _refuse_unreal_numbers(spec: Mapping[str, Any]) -> None:
    for key, value in dotted.flatten(spec).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise InvalidRequest(f"{key}={value} is not a finite number", fix=f"Give {key} a finite value.")
            if isinstance(number, int) and abs(number) > _LARGEST:
                raise InvalidRequest(
                    f"{key}={show(value, 40)} is beyond any setting: whole numbers go up to 2^53",
                    fix=f"Give {key} a smaller value.",
                )


def _flat(errors: Iterator[ValidationError]) -> Iterator[ValidationError]:
    """Errors of alternatives (`anyOf`) are opened when only one branch can be meant, else kept whole."""
    for error in errors:
        branches = [inner for inner in error.context or () if inner.validator != "type"]
        if error.validator in ("anyOf", "oneOf") and len(branches) == 1:
            yield branches[0]
        else:
            yield error


def _key(error: ValidationError) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path]
    return "".join(parts).lstrip(".") or "the spec"


def _describe(error: ValidationError, remarks: Mapping[str, str]) -> str:
    key = _key(error)
    remark = remarks.get(key.split("[")[0])
    return f"{key}={show(error.instance)} {_rule(error)}" + (f" ({remark})" if remark else "")


def _rule(error: ValidationError) -> str:
    value: Any = error.validator_value
    match error.validator:
        case "type":
            names = value if isinstance(value, list) else [value]
            return f"must be {_articled(names)}"
        case "enum":
            return f"must be one of {', '.join(map(str, value))}"
        case "const":
            return f"must be {show(value)}"
        case "not" if isinstance(value, dict) and value.keys() == {"const"}:
            return f"must not be {show(value['const'])}"
        case "minimum":
            return f"must be at least {value}"
        case "maximum":
            return f"must be at most {value}"
        case "exclusiveMinimum":
            return f"must be greater than {value}"
        case "exclusiveMaximum":
            return f"must be less than {value}"
        case "multipleOf":
            return f"must be a multiple of {value}"
        case "minItems" | "maxItems":
            bound = "at least" if error.validator == "minItems" else "at most"
            return f"must have {bound} {value} item{'' if value == 1 else 's'}"
        case "pattern":
            return f"must match {value}"
        case "additionalProperties":
            return "holds a key that is not in the schema"
        case _:
            return f"breaks the rule {error.validator}={show(value)}"


def _articled(names: list[str]) -> str:
    words = {"integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false",
             "array": "a list", "object": "a mapping", "null": "null"}  # fmt: skip
    return " or ".join(words.get(name, name) for name in names)


_SAID_AS_FIX = (
    ("must be", "is"),
    ("must not be", "is not"),
    ("must have", "has"),
    ("must match", "matches"),
    ("breaks", "keeps"),
)


def _fix(error: ValidationError) -> str:
    key = _key(error)
    if error.validator == "enum":
        choices: Any = error.validator_value
        return f"set {key} to one of {', '.join(map(str, choices))}"
    if error.validator == "additionalProperties":
        return f"take the unknown key out of {key}"
    rule = _rule(error)
    for must, does in _SAID_AS_FIX:
        rule = rule.replace(must, does, 1)
    return f"give {key} a value that {rule}"
