"""The search space of one request: which keys a study varies, and where the user's wishes come in.

Without wishes: `automl_default_parameters` of the train schema (leaves with `automl_enabled` where there is no list),
minus `automl_disabled_parameters`, minus what the field's own declaration freezes or leaves off (architecture).

With wishes (`automl.search_space`) exactly the keys named there are searched, each as it says:

    true, {}                         the declared range
    [a, b, c]                        these values
    {"min": .., "max": .., "log": .., "step": ..}     ends left out are the declared ones
    {"choices": [..], "weights": [..]}                values, optionally not equally likely

TAO's words are read too: valid_min, valid_max, options (valid_options), option_weights.
"""

import math
from collections.abc import Mapping
from typing import Any

from mask2former_mcp.automl import ranges
from mask2former_mcp.automl.legal import Legal, legal
from mask2former_mcp.automl.ranges import NotSearchable
from mask2former_mcp.automl.space import Parameter, Space, ordered
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.search import KEYWORD

# Other bundles' schemas say nothing about these; varying them changes the problem, the metric or the cost of a trial.
_FROZEN_WORDS = {
    "size", "height", "width", "resolution", "shape", "crop", "classes", "class", "epochs", "epoch", "iters",
    "interval", "gpus", "gpu", "nodes", "workers", "seed", "threshold", "topk", "contiguous", "path", "dir",
    "pretrained", "checkpoint",
}  # fmt: skip
_WORDS = {
    "min": "min", "low": "min", "valid_min": "min", "max": "max", "high": "max", "valid_max": "max",
    "log": "log", "step": "step",
    "choices": "choices", "options": "choices", "valid_options": "choices",
    "weights": "weights", "option_weights": "weights",
}  # fmt: skip


def derive(
    schema: Mapping[str, Any],
    spec: Mapping[str, Any],
    *,
    wishes: Mapping[str, Any] | None = None,
    shorthand: Mapping[str, str] | None = None,
    declared: Mapping[str, Mapping[str, Any]] | None = None,
    caps: Mapping[str, int] | None = None,
) -> Space:
    """The space around a resolved train spec. InvalidRequest for a wish that leaves the schema.

    `declared`: search keywords by key for a schema that carries none (another bundle of a network we know).
    `caps`: highest useful value by key (batch size, from the number of images).
    """
    leaves = {key: _with_keyword(leaf, (declared or {}).get(key)) for key, leaf in _leaves(schema)}
    values = dotted.flatten(spec)
    left_out: dict[str, str] = {}
    found: list[Parameter] = []
    if wishes is not None:
        for key, wish in _named(wishes, leaves, shorthand or {}).items():
            found.append(_wished(key, leaves[key], values.get(key), wish))
    else:
        for key in _defaults(schema, leaves):
            try:
                found.append(_unasked(key, leaves[key], values.get(key)))
            except NotSearchable as reason:
                left_out[key] = str(reason)
    kept, cut = _capped(found, caps or {}, left_out)
    return _related(kept, values, left_out).model_copy(update={"cut": cut})


def declarations(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Search keywords by key, of a schema that carries them: what `derive` takes as `declared`."""
    return {key: dict(leaf[KEYWORD]) for key, leaf in _leaves(schema) if KEYWORD in leaf}


def _leaves(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, inner in node.get("properties", {}).items():
        if isinstance(inner, Mapping):
            found += _leaves(inner, f"{prefix}{name}.") if "properties" in inner else [(prefix + name, inner)]
    return found


def _with_keyword(leaf: Mapping[str, Any], keyword: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return leaf if KEYWORD in leaf or keyword is None else {**leaf, KEYWORD: keyword}


def _defaults(schema: Mapping[str, Any], leaves: Mapping[str, Any]) -> list[str]:
    listed = schema.get("automl_default_parameters")
    if listed is None:
        listed = [key for key, leaf in leaves.items() if leaf.get("automl_enabled")]
    disabled = set(schema.get("automl_disabled_parameters", ()))
    return [key for key in listed if key in leaves and key not in disabled]


def _unasked(key: str, leaf: Mapping[str, Any], value: Any) -> Parameter:
    """NotSearchable when the field is off by default."""
    declared = leaf.get(KEYWORD)
    if declared is not None and "frozen" not in declared and not declared.get("enabled"):
        raise NotSearchable(f"off unless asked for. {declared.get('note', '')}".strip())
    if declared is None:
        if key.startswith("model."):
            raise NotSearchable("architecture: off unless asked for")
        if _FROZEN_WORDS & set(key.rsplit(".", 1)[-1].split("_")):
            raise NotSearchable("it would change the problem, the metric or the cost of a trial")
    return ranges.parameter(key, leaf, value)


def _named(wishes: Mapping[str, Any], leaves: Mapping[str, Any], shorthand: Mapping[str, str]) -> dict[str, Any]:
    """Wishes by full key; dotted, nested and shorthand names are read."""
    named: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, wish in node.items():
            key = shorthand.get(prefix + str(name), prefix + str(name))
            if key in leaves:
                named[key] = wish
            elif isinstance(wish, Mapping) and wish and any(leaf.startswith(key + ".") for leaf in leaves):
                walk(wish, key + ".")
            else:
                near = dotted.nearest(key, sorted(leaves))
                raise InvalidRequest(
                    f"search_space names {key!r}, which is no key of the train spec",
                    fix=f"Nearest keys: {', '.join(near)}." if near else "search_spec lists the keys.",
                )

    walk(wishes, "")
    if not named:
        raise InvalidRequest("search_space is empty", fix="Name at least one key, or leave search_space out.")
    return named


def _wished(key: str, leaf: Mapping[str, Any], value: Any, wish: Any) -> Parameter:
    declared = leaf.get(KEYWORD) or {}
    if "frozen" in declared:
        raise InvalidRequest(
            f"search_space: {key} cannot be searched. {declared['frozen']}", fix=f"Set {key} in overrides instead."
        )
    try:
        allowed = legal(leaf)
    except ValueError as reason:
        raise InvalidRequest(
            f"search_space: {key} cannot be searched: {reason}", fix=f"Set {key} in overrides instead."
        ) from reason
    words = _words(key, wish, allowed)
    try:
        if "choices" in words:
            return _values(key, leaf, allowed, words)
        if not words:
            return ranges.parameter(key, leaf, value)
        return _interval(key, leaf, allowed, value, words)
    except NotSearchable as reason:
        raise InvalidRequest(
            f"search_space: {key} cannot be searched: {reason}", fix=f"Give {key} a range inside {allowed.words()}."
        ) from reason


def _words(key: str, wish: Any, allowed: Legal) -> dict[str, Any]:
    """A wish in our words; {} for "the declared range"."""
    if wish is True:
        return {}
    if isinstance(wish, list | tuple):
        return {"choices": list(wish)}
    if not isinstance(wish, Mapping) or (unknown := [str(name) for name in wish if name not in _WORDS]):
        said = f"has unknown words {', '.join(unknown)}" if isinstance(wish, Mapping) else f"is {wish!r}"
        raise InvalidRequest(
            f"search_space: the range of {key} {said}",
            fix=f'Write true, a list of values, or {{"min": .., "max": .., "log": ..}} inside {allowed.words()}.',
        )
    return {_WORDS[name]: value for name, value in wish.items() if value is not None}


def _values(key: str, leaf: Mapping[str, Any], allowed: Legal, words: Mapping[str, Any]) -> Parameter:
    choices = tuple(words["choices"]) if isinstance(words["choices"], list | tuple) else ()
    weights = tuple(words.get("weights") or ())
    outside = [choice for choice in choices if not allowed.allows(choice)]
    if outside or len(choices) < 2 or len({repr(choice) for choice in choices}) < len(choices):
        wrong = f"{outside[0]!r} is not legal" if outside else "at least two different values are needed"
        raise InvalidRequest(f"search_space: {key}: {wrong}", fix=f"Legal: {allowed.words()}.")
    if weights and (len(weights) != len(choices) or not all(_positive(weight) for weight in weights)):
        raise InvalidRequest(
            f"search_space: {key}: weights {list(weights)} do not fit {len(choices)} values",
            fix="Give one positive number per value.",
        )
    return ranges.chosen(key, leaf, choices, weights)


def _interval(key: str, leaf: Mapping[str, Any], allowed: Legal, value: Any, words: Mapping[str, Any]) -> Parameter:
    if allowed.kind == "choice":
        raise InvalidRequest(f"search_space: {key} takes options, not a range", fix=f"List them: {allowed.words()}.")
    low, high, log, step = words.get("min"), words.get("max"), words.get("log"), words.get("step", 1)
    if low is None or high is None or log is None:
        known = _declared_ends(key, leaf, value, low, high)
        low, high = known.low if low is None else low, known.high if high is None else high
        log = known.log if log is None else log
    for end in (low, high):
        if not _number(end) or not allowed.low <= end <= allowed.high:
            raise InvalidRequest(f"search_space: {key}: {end!r} is not legal", fix=f"Legal: {allowed.words()}.")
    if not low < high or not isinstance(log, bool) or (log and low <= 0) or not _number(step) or step < 1:
        raise InvalidRequest(
            f"search_space: {key}: the range {low!r} .. {high!r} (log={log!r}, step={step!r}) is not one",
            fix=f"min below max, above 0 with log, step a whole number of at least 1; inside {allowed.words()}.",
        )
    return ranges.bounded(key, leaf, float(low), float(high), log=log, step=int(step))


def _declared_ends(key: str, leaf: Mapping[str, Any], value: Any, low: Any, high: Any) -> Parameter:
    """The declared range, for the parts that a wish leaves open."""
    try:
        return ranges.parameter(key, leaf, value)
    except NotSearchable:
        if low is None or high is None:
            raise
        return Parameter(key=key, kind="real", low=low, high=high, log=False)


def _capped(
    parameters: list[Parameter], caps: Mapping[str, int], left_out: dict[str, str]
) -> tuple[list[Parameter], dict[str, str]]:
    """Without the values that would make an epoch of zero steps; and key -> what became of its range."""
    kept: list[Parameter] = []
    cut: dict[str, str] = {}
    for parameter in parameters:
        most = caps.get(parameter.key)
        found = parameter if most is None else parameter.capped(most)
        if found is None:
            left_out[parameter.key] = f"the training split has too few images for {parameter.span()}: at most {most}"
            continue
        if found != parameter:
            cut[parameter.key] = f"{found.span()}, not {parameter.span()}: a step has at most {most} images"
        kept.append(found)
    return kept, cut


def _related(parameters: list[Parameter], values: Mapping[str, Any], left_out: dict[str, str]) -> Space:
    """Relations closed: what depends on a fixed key gets that value as its floor."""
    keys = {parameter.key for parameter in parameters}
    floors: dict[str, float] = {}
    for parameter in parameters:
        other = parameter.above
        if other is None or other in keys:
            continue
        fixed = values.get(other)
        if fixed is None or not _number(fixed) or not parameter.high > fixed:
            left_out[parameter.key] = f"it must exceed {other}, which leaves no value"
        else:
            floors[parameter.key] = float(fixed)
    kept = [parameter for parameter in parameters if parameter.key not in left_out]
    try:
        return Space(parameters=ordered(kept), floors=floors, left_out=left_out)
    except ValueError as reason:
        raise InvalidRequest(str(reason), fix="Leave one of them out of search_space.") from reason


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0
