"""Finding spec keys by words: the answer to "how is it called?" without reading 187 fields."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

_WORTH_SHOWING = ("type", "default", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum")
_ALL_FOUND = 100.0
_NAMES = {"enum": "choices", "description": "help"}


def search(schema: Mapping[str, Any], query: str, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The best `limit` matches and how many there were. An empty query gives the popular keys, then all others."""
    leaves = list(_leaves(schema, ""))
    words = [word for word in query.lower().replace(".", " ").replace("_", " ").split() if word]
    if not words:
        ranked = sorted(leaves, key=lambda leaf: (not leaf[1].get("popular", False), leaf[0]))
    else:
        near = difflib.get_close_matches(query.lower(), [path for path, _ in leaves], n=limit, cutoff=0.6)
        scored = [(_score(path, field, words), path, field) for path, field in leaves]
        if max((score for score, _, _ in scored), default=0.0) < _ALL_FOUND:  # a slip of the pen: neighbours first
            scored = [(_ALL_FOUND * 2 - near.index(p) if p in near else score, p, f) for score, p, f in scored]
        ranked = [(path, field) for score, path, field in sorted(scored, key=lambda s: (-s[0], s[1])) if score > 0]
    return [_shown(path, field) for path, field in ranked[:limit]], len(ranked)


def _leaves(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        if field.get("properties"):
            yield from _leaves(field, path)
        else:
            yield path, field


def _score(path: str, field: Mapping[str, Any], words: list[str]) -> float:
    """A word that is a part of the key counts more than one inside a part, and that more than one in the help."""
    parts = path.lower().replace("_", ".").split(".")
    text = str(field.get("description", "")).lower()
    found = [3.0 if word in parts else 2.0 if word in path.lower() else 1.0 if word in text else 0.0 for word in words]
    # Every word found beats any number of partial hits.
    return sum(found) + (_ALL_FOUND if all(found) else 0.0) - 0.01 * len(parts) if any(found) else 0.0


def _shown(path: str, field: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"path": path}
    for key in (*_WORTH_SHOWING, "description"):
        if key in field:
            shown[_NAMES.get(key, key)] = field[key]
    return shown
