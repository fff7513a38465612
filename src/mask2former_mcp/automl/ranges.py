"""The range of one parameter: declared beside the field (`x-m2f-search`), or derived from a raw schema.

Declared ranges are relative to the *resolved* value, the one that plain training would use: a rate is searched a decade
either way of it on a log scale, so every starting point lies inside its own space.

A leaf without a declaration (another bundle's schema) gets the safe derivation, which never spans a legal range only
because it is legal:

    options, true/false      all of them, with `option_weights` where given
    real, at most a tenth    log scale, a decade either way of the resolved value, clipped to the bounds
      of its upper bound
    other reals, whole       linear, from half to twice the resolved value, clipped; `/ n`, `^ n`, `> x` kept
    value 0 or none          not searched: nothing says how far to go
"""

import math
from collections.abc import Mapping
from typing import Any

from mask2former_mcp.automl.legal import Legal, legal
from mask2former_mcp.automl.space import Parameter
from mask2former_mcp.spec.search import KEYWORD

DECADE = 10.0


class NotSearchable(Exception):
    """Why a key is left out of the space. Never shown alone: the caller says which key."""


def parameter(key: str, leaf: Mapping[str, Any], value: Any) -> Parameter:
    """The range of `key` around its resolved value. NotSearchable with the reason."""
    allowed = _legal(leaf)
    declared = leaf.get(KEYWORD) or {}
    if "frozen" in declared:
        raise NotSearchable(str(declared["frozen"]))
    if allowed.kind == "choice" or declared.get("scale") == "choice":
        return _options(key, leaf, allowed, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotSearchable(f"its value {value!r} gives no place to search around")
    low, high, log = _ends(declared, allowed, float(value))
    return bounded(key, leaf, low, high, log=log)


def bounded(key: str, leaf: Mapping[str, Any], low: float, high: float, *, log: bool, step: int = 1) -> Parameter:
    """A numeric parameter between two ends, clipped to what the leaf allows. NotSearchable where nothing is left."""
    allowed = _legal(leaf)
    low, high = max(low, allowed.low), min(high, allowed.high)
    common = {"key": key, "popular": bool(leaf.get("popular")), "note": note(leaf), "above": allowed.above}
    if allowed.kind == "real":
        if not low < high:
            raise NotSearchable(f"only one value is left in {allowed.words()}")
        return Parameter(kind="real", low=low, high=high, log=log and low > 0, **common)
    if allowed.base is not None:
        low = math.ceil(math.log(max(low, 1.0), allowed.base) - 1e-9)
        high = math.floor(math.log(max(high, 1.0), allowed.base) + 1e-9)
        if low >= high:
            raise NotSearchable(f"only one value is left in {allowed.words()}")
        return Parameter(kind="power", low=low, high=high, base=allowed.base, **common)
    grid = math.lcm(allowed.step, step)
    low, high = math.ceil(low / grid) * grid, math.floor(high / grid) * grid
    if low >= high:
        raise NotSearchable(f"only one value is left in {allowed.words()}")
    return Parameter(kind="whole", low=low, high=high, step=grid, log=log and low > 0 and grid == 1, **common)


def chosen(key: str, leaf: Mapping[str, Any], choices: tuple[Any, ...], weights: tuple[float, ...]) -> Parameter:
    """A parameter over listed values."""
    common = {"key": key, "popular": bool(leaf.get("popular")), "note": note(leaf), "above": _legal(leaf).above}
    if weights and len(set(weights)) > 1:
        return Parameter(kind="weighted", choices=choices, weights=weights, **common)
    return Parameter(kind="choice", choices=choices, **common)


def note(leaf: Mapping[str, Any]) -> str:
    return str((leaf.get(KEYWORD) or {}).get("note", ""))


def _legal(leaf: Mapping[str, Any]) -> Legal:
    try:
        return legal(leaf)
    except ValueError as reason:
        raise NotSearchable(str(reason)) from reason


def _options(key: str, leaf: Mapping[str, Any], allowed: Legal, value: Any) -> Parameter:
    named = (leaf.get(KEYWORD) or {}).get("choices", allowed.choices)
    choices = tuple(choice for choice in named if allowed.allows(choice))
    if value not in choices and allowed.allows(value):
        # Trial 0 is the resolved value; a space without it could not learn from that trial.
        choices = tuple(sorted((*choices, value))) if isinstance(value, int | float) else (value, *choices)
    if len(choices) < 2:
        raise NotSearchable("only one value is left")
    weights = allowed.weights if choices == allowed.choices else ()
    return chosen(key, leaf, choices, weights)


def _ends(declared: Mapping[str, Any], allowed: Legal, value: float) -> tuple[float, float, bool]:
    """(low, high, log) around the resolved value, before clipping."""
    log = declared.get("scale") == "log"
    if not declared:
        tenth = allowed.high / DECADE if math.isfinite(allowed.high) else math.inf
        log = allowed.kind == "real" and 0 < value <= tenth
        factor = DECADE if log else 2.0
    else:
        factor = float(declared.get("factor", 0.0))
    low, high = declared.get("low"), declared.get("high")
    if low is None or high is None:
        if value <= 0 or factor <= 1:
            raise NotSearchable(f"its value {value:g} gives no place to search around")
        low = value / factor if low is None else low
        high = value * factor if high is None else high
    # The resolved value stays inside, whatever stands beside the field: trial 0 proposes it.
    return min(float(low), value), max(float(high), value), log
