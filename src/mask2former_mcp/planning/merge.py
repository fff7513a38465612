"""Overrides in any spelling -> one flat mapping of known keys; layers of such mappings -> one spec.

A caller may write dotted keys, nested mappings, a mixture, and the bundle's shorthand names. All of them mean the same
flat mapping, whatever their order; the same key twice with different values is an error, never a silent choice.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.spec import dotted


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one origin, flat. `listed`: they are in the Plan's spec_overrides even where they change nothing."""

    origin: str
    values: Mapping[str, Any]
    listed: bool = True


Owners = Callable[[str], Sequence[str]]  # a key or block -> the other actions whose specs have it


def normalise(
    overrides: Mapping[str, Any], keys: Collection[str], shorthand: Mapping[str, str], owners: Owners = lambda _: ()
) -> dict[str, Any]:
    """Flat mapping of known spec keys.

    `keys` are the spec's leaves, `shorthand` maps short names to leaves. InvalidRequest for an unknown key (naming the
    nearest ones, or the `owners`), a block given as a value, one key with two values, and text that looks like
    interpolation.
    """
    known = set(keys)
    flat: dict[str, Any] = {}
    written: dict[str, str] = {}
    for spelled, value in _leaves(overrides, known, ()):
        key = spelled if spelled in known else shorthand.get(spelled, spelled)
        if key not in known:
            is_block = any(other.startswith(f"{key}.") for other in known)
            if not is_block and (actions := owners(key)):
                raise _of_another(spelled, value, actions)
            raise _unknown(spelled, value, known, shorthand)
        _refuse_interpolation(key, value)
        if key in flat and not same(flat[key], value):
            raise InvalidRequest(
                f"overrides set {key} twice: {written[key]}={show(flat[key])} and {spelled}={show(value)}",
                fix=f"Keep one of them, as {key!r}.",
            )
        flat[key], written[key] = value, spelled
    return flat


def _leaves(node: Mapping[str, Any], known: set[str], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if not isinstance(name, str) or not name.strip():
            raise InvalidRequest(
                f"overrides hold the key {name!r} below {'.'.join(above) or 'the top'}: keys are non-empty texts",
                fix="Write dotted keys such as 'train.optim.lr'.",
            )
        path = (*above, name)
        key = ".".join(path)
        if key.count(".") > 20:
            raise InvalidRequest(f"overrides are nested too deeply at {key[:80]}...", fix="Write dotted keys.")
        if isinstance(value, Mapping) and key not in known:
            yield from _leaves(value, known, path)
        else:
            yield key, value


def _of_another(spelled: str, value: object, actions: Sequence[str]) -> InvalidRequest:
    return InvalidRequest(
        f"overrides {spelled}={show(value)} belongs to {' and '.join(actions)}: this action does not read it",
        fix=f"Leave {spelled} out here, and pass it in the overrides of {' or '.join(actions)}.",
        details={"actions": list(actions)},
    )


def _unknown(spelled: str, value: object, known: set[str], shorthand: Mapping[str, str]) -> InvalidRequest:
    block = sorted(key for key in known if key.startswith(spelled + "."))
    if block:
        return InvalidRequest(
            f"{spelled}={show(value)}: {spelled} is a block of {len(block)} keys, not a value",
            fix=f"Set keys inside it, e.g. {', '.join(block[:3])}.",
        )
    inside = next((key for key in known if spelled.startswith((key + ".", key + "["))), None)
    if inside is not None:
        return InvalidRequest(
            f"{spelled} reaches inside {inside}, which is set as a whole", fix=f"Give the whole value of {inside}."
        )
    near = dotted.nearest(spelled, [*sorted(known), *shorthand])
    hint = f"Nearest keys: {', '.join(near)}." if near else "Ask search_spec for the key."
    return InvalidRequest(f"unknown spec key {spelled!r} (value {show(value)})", fix=hint, details={"nearest": near})


def _refuse_interpolation(key: str, value: object) -> None:
    """Config systems expand `${...}` and read `???` as missing; a spec from a caller holds plain values only."""
    for text in _texts(value):
        if "${" in text:
            raise InvalidRequest(
                f"{key}={show(value)} looks like interpolation (`${{...}}`), which is never expanded here",
                fix=f"Write the value of {key} itself.",
            )
        if text == "???":
            raise InvalidRequest(f"{key}='???' means 'missing', not a value", fix=f"Leave {key} out or give its value.")
        if "\x00" in text:
            raise InvalidRequest(f"{key}={show(value)} holds a NUL character", fix="Remove it.")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(name)
            yield from _texts(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def same(one: object, other: object) -> bool:
    """Equal as JSON values: a tuple is a list, 1 is 1.0, but true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def show(value: object, limit: int = 120) -> str:
    """A value as JSON on one short line, for messages."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def merge(template: Mapping[str, Any], layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(merged nested spec, spec_overrides): later layers win; the overrides are sorted by key."""
    spec = dict(template)
    base = dotted.flatten(template)
    listed: set[str] = set()
    values: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.values.items():
            plain = _plain(value)
            spec = dotted.with_value(spec, key, plain)
            values[key] = plain
            if layer.listed:
                listed.add(key)
    differing = {key for key, value in values.items() if key not in base or not same(base[key], value)}
    return spec, {key: values[key] for key in sorted(listed | differing)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
