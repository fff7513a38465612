"""What a schema leaf allows: type, bounds, enum and TAO's `math_cond`, read into one value.

`math_cond` (TAO's keyword) is one condition: `/ n` a multiple of n, `^ n` a power of n, `> x` (also >=, <, <=) a
bound, `> depends_on` more than the parameter that `depends_on` names. The space after the sign may be missing.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

_CONDITION = re.compile(r"\s*(/|\^|>=|<=|>|<)\s*(depends_on|[-+0-9.eE]+)\s*")


@dataclass(frozen=True, slots=True)
class Legal:
    """Bounds are inclusive; endless ones are infinite. `above` is the key whose value must be exceeded."""

    kind: Literal["real", "whole", "choice"]
    low: float = -math.inf
    high: float = math.inf
    step: int = 1  # whole numbers: a multiple of this
    base: int | None = None  # whole numbers: a power of this
    choices: tuple[Any, ...] = ()
    weights: tuple[float, ...] = ()
    above: str | None = None
    open_low: float | None = None  # a real must be greater than this; `low` is then the next number

    def words(self) -> str:
        """The legal range as a person reads it."""
        if self.kind == "choice":
            return "one of " + ", ".join(map(str, self.choices))
        low = f"above {self.open_low:g}" if self.open_low is not None else f"{self.low:g}"
        ends = f"{'' if math.isinf(self.low) and self.open_low is None else low} .. "
        ends += "" if math.isinf(self.high) else f"{self.high:g}"
        kind = "a number" if self.kind == "real" else "a whole number"
        gaps = f", a power of {self.base}" if self.base else f", a multiple of {self.step}" if self.step > 1 else ""
        return f"{kind} in {ends.strip()}{gaps}" if ends.strip() != ".." else kind + gaps

    def allows(self, value: Any) -> bool:
        if self.kind == "choice":
            return any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if not self.low <= value <= self.high:
            return False
        if self.kind == "real":
            return True
        return (
            float(value).is_integer() and value % self.step == 0 and (self.base is None or _is_power(value, self.base))
        )


def legal(leaf: Mapping[str, Any]) -> Legal:
    """ValueError, with the reason, for a leaf that cannot be searched: text, list, mapping, unknown condition."""
    if choices := leaf.get("enum"):
        weights = tuple(leaf.get("option_weights") or ())
        if weights and (len(weights) != len(choices) or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"option_weights {list(weights)} do not fit its {len(choices)} options")
        return _conditioned(Legal(kind="choice", choices=tuple(choices), weights=weights), leaf)
    said = leaf.get("type")
    kinds = {said} if isinstance(said, str) else set(said or ())
    if "boolean" in kinds:
        return Legal(kind="choice", choices=(False, True))
    if not kinds & {"number", "integer"}:
        raise ValueError(f"it is {_article(kinds - {'null'})}; numbers, true/false and listed options can be searched")
    found = Legal(kind="real" if "number" in kinds else "whole")
    found = replace(found, low=float(leaf.get("minimum", -math.inf)), high=float(leaf.get("maximum", math.inf)))
    if "exclusiveMinimum" in leaf:
        found = _bounded(found, ">", float(leaf["exclusiveMinimum"]))
    if "exclusiveMaximum" in leaf:
        found = _bounded(found, "<", float(leaf["exclusiveMaximum"]))
    if found.kind == "whole" and float(leaf.get("multipleOf", 1)).is_integer():
        found = replace(found, step=int(leaf.get("multipleOf", 1)))
    return _on_grid(_conditioned(found, leaf))


def _conditioned(found: Legal, leaf: Mapping[str, Any]) -> Legal:
    text = leaf.get("math_cond")
    if not text:
        return found
    match = _CONDITION.fullmatch(str(text))
    if match is None:
        raise ValueError(f"its condition {text!r} is not understood")
    sign, operand = match.groups()
    if operand == "depends_on":
        other = leaf.get("depends_on")
        if sign != ">" or not isinstance(other, str) or not other:
            raise ValueError(f"its condition {text!r} names no parameter, or another relation than >")
        return replace(found, above=other)
    number = float(operand)
    if found.kind == "choice":
        kept = tuple(choice for choice in found.choices if _holds(choice, sign, number))
        return replace(found, choices=kept, weights=() if len(kept) < len(found.choices) else found.weights)
    if sign in "/^":
        if found.kind != "whole" or not number.is_integer() or number < (2 if sign == "^" else 1):
            raise ValueError(f"its condition {text!r} does not fit {found.words()}")
        if sign == "/":
            return replace(found, step=math.lcm(found.step, int(number)))
        return replace(found, base=int(number), low=max(found.low, 1.0))
    return _bounded(found, sign, number)


def _bounded(found: Legal, sign: str, number: float) -> Legal:
    """With one more bound. Open ends of reals become the next number; of whole numbers, the next whole one."""
    if sign in (">", ">="):
        if sign == ">" and found.kind == "real":
            if number < found.low:
                return found
            return replace(found, low=math.nextafter(number, math.inf), open_low=number)
        least = math.floor(number) + 1 if sign == ">" else math.ceil(number)
        return replace(found, low=max(found.low, number if found.kind == "real" else float(least)))
    if found.kind == "real":
        most = math.nextafter(number, -math.inf) if sign == "<" else number
    else:
        most = float(math.ceil(number) - 1 if sign == "<" else math.floor(number))
    return replace(found, high=min(found.high, most))


def _on_grid(found: Legal) -> Legal:
    """Whole bounds moved inside, to multiples of the step."""
    if found.kind != "whole" or found.step == 1:
        return found
    low = found.low if math.isinf(found.low) else float(math.ceil(found.low / found.step) * found.step)
    high = found.high if math.isinf(found.high) else float(math.floor(found.high / found.step) * found.step)
    return replace(found, low=low, high=high)


def _holds(choice: Any, sign: str, number: float) -> bool:
    if not isinstance(choice, int | float) or isinstance(choice, bool):
        return True
    match sign:
        case ">":
            return choice > number
        case ">=":
            return choice >= number
        case "<":
            return choice < number
        case "<=":
            return choice <= number
        case "/":
            return choice % number == 0
        case _:
            return _is_power(choice, int(number))


def _is_power(value: float, base: int) -> bool:
    power = 1
    while power < value:
        power *= base
    return power == value


def _article(kinds: set[str]) -> str:
    words = {"string": "free text", "array": "a list", "object": "a mapping"}
    return words.get(next(iter(sorted(kinds)), ""), "of no single type")
