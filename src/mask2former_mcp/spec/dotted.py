"""Dotted keys: `train.optim.lr` and the nested mapping it stands for. Lists are leaves, and so is an empty mapping."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}. Keys that already hold dots come out as they are; an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} -> {'a': {'b': 1}}. ValueError where one key is both a value and a block of other keys."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        _put(nested, key, value)
    return nested


def _put(nested: dict[str, Any], key: str, value: Any) -> None:
    *blocks, leaf = key.split(".")
    if not leaf or not all(blocks):
        raise ValueError(f"'{key}' is not a dotted key: a part of it is empty")
    node = nested
    for depth, name in enumerate(blocks):
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ValueError(f"'{'.'.join(blocks[: depth + 1])}' has a value and cannot hold '{key}' too")  # noqa: TRY004 (the keys disagree; their types are right)
    if isinstance(node.get(leaf), dict) and node[leaf] and not isinstance(value, Mapping):
        raise ValueError(f"'{key}' is a block of keys and cannot have the value {value!r} too")
    node[leaf] = dict(value) if isinstance(value, Mapping) else value


def get(nested: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key. KeyError with the whole key when it is not there."""
    node: Any = nested
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            raise KeyError(key)
        node = node[name]
    return node


def with_value(nested: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one value changed or added; what is not on the way to it is shared, nothing is mutated."""
    name, _, rest = key.partition(".")
    if not name or key.endswith("."):
        raise ValueError(f"'{key}' is not a dotted key: a part of it is empty")
    changed = dict(nested)
    if not rest:
        changed[name] = value
        return changed
    inner = nested.get(name, {})
    if not isinstance(inner, Mapping):
        raise ValueError(f"'{name}' has the value {inner!r} and cannot hold '{rest}'")  # noqa: TRY004 (as above)
    changed[name] = with_value(inner, rest, value)
    return changed


def nearest(key: str, keys: Iterable[str]) -> list[str]:
    """Up to three keys that `key` was probably meant to be: the same last part first, then the closest spelling."""
    known = list(keys)
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    ranked = difflib.get_close_matches(key, same_leaf, n=3, cutoff=0.0)
    by_leaf = {k.rsplit(".", 1)[-1]: k for k in known}
    spelled = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    leaves = [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, n=3, cutoff=0.75)]
    return list(dict.fromkeys([*ranked, *spelled, *leaves]))[:3]
