"""A search space: what a study varies, between which values, and how a proposal becomes a legal spec value.

Pure data, stored with the study. A sampler proposes a *raw* number or choice for each parameter; `decode` makes the
spec value of it. The two differ where a range has gaps (`^ n`: powers), where options have weights, and where one
parameter must exceed another.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["real", "whole", "power", "choice", "weighted"]


class Parameter(BaseModel):
    """One searched spec key.

    real      a float in [low, high], on a log scale where `log`
    whole     an integer in [low, high], in steps of `step` from low
    power     base ** k for whole k in [low, high]; every power is equally likely
    choice    one of `choices`
    weighted  one of `choices`, drawn in proportion to `weights`: raw is a number in [0, 1)

    `above` names another parameter, or `floor` gives a number, that the value must exceed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: int = 1
    base: int = 2
    choices: tuple[Any, ...] = ()
    weights: tuple[float, ...] = ()
    above: str | None = None
    popular: bool = False
    note: str = ""

    def decode(self, raw: Any, *, floor: float | None = None) -> Any:
        """The spec value of a raw proposal; above `floor` where one is given."""
        value: Any
        match self.kind:
            case "real":
                # Twelve digits: a spec that a person reads, and the same number after YAML and JSON.
                value = min(max(float(f"{float(raw):.12g}"), self.low), self.high)
            case "whole":
                value = int(raw)
            case "power":
                value = self.base ** int(raw)
            case "choice":
                return self.choices[self._position(raw)]
            case "weighted":
                return self._drawn(float(raw))
        return value if floor is None or value > floor else self._next(floor)

    def encode(self, value: Any) -> Any:
        """The raw proposal that decodes to this value, or to the nearest one in the space."""
        match self.kind:
            case "real":
                return min(max(float(value), self.low), self.high)
            case "whole":
                steps = round((float(value) - self.low) / self.step)
                return int(self.low) + self.step * min(max(steps, 0), int((self.high - self.low) // self.step))
            case "power":
                return min(max(round(math.log(max(float(value), 1.0), self.base)), int(self.low)), int(self.high))
            case "choice":
                return self.choices[self._position(value)]
            case "weighted":
                edges = self._edges()
                at = self._position(value)
                return (edges[at] + edges[at + 1]) / 2

    def contains(self, value: Any) -> bool:
        """Whether a study could propose this value."""
        return _same(self.decode(self.encode(value)), value) if self._readable(value) else False

    def capped(self, most: int) -> "Parameter | None":
        """Without the values above `most`; None where fewer than two are left."""
        if self.choices:
            at = [index for index, choice in enumerate(self.choices) if choice <= most]
            choices, weights = tuple(self.choices[i] for i in at), tuple(self.weights[i] for i in at if self.weights)
            return self.model_copy(update={"choices": choices, "weights": weights}) if len(at) > 1 else None
        end = math.floor(math.log(most, self.base) + 1e-9) if self.kind == "power" else most
        if self.kind == "whole":
            end = int(self.low) + (end - int(self.low)) // self.step * self.step
        high = min(self.high, end)
        return self.model_copy(update={"high": high}) if self.low < high else None

    def span(self) -> str:
        """The range in words: `2e-05 .. 0.002 (log)`, `4 .. 10`, `a, b, c`."""
        match self.kind:
            case "choice" | "weighted":
                return ", ".join(map(str, self.choices))
            case "power":
                return f"{self.base ** int(self.low)} .. {self.base ** int(self.high)} (powers of {self.base})"
            case _:
                steps = f" in steps of {self.step}" if self.step > 1 else ""
                return f"{self.low:g} .. {self.high:g}{steps}{' (log)' if self.log else ''}"

    def _readable(self, value: Any) -> bool:
        if self.kind in ("choice", "weighted"):
            return any(_same(choice, value) for choice in self.choices)
        return isinstance(value, int | float) and not isinstance(value, bool)

    def _position(self, value: Any) -> int:
        """Index of a choice; for a number that is none of them, of the nearest."""
        for index, choice in enumerate(self.choices):
            if _same(choice, value):
                return index
        numbers = [choice for choice in self.choices if isinstance(choice, int | float)]
        if len(numbers) == len(self.choices) and isinstance(value, int | float):
            return min(range(len(numbers)), key=lambda index: abs(numbers[index] - value))
        return 0

    def _edges(self) -> list[float]:
        total, edges = sum(self.weights), [0.0]
        for weight in self.weights:
            edges.append(edges[-1] + weight / total)
        return edges

    def _drawn(self, raw: float) -> Any:
        edges = self._edges()
        inside = [index for index in range(len(self.choices)) if edges[index] <= raw < edges[index + 1]]
        return self.choices[inside[0] if inside else _last_possible(self.weights)]

    def _next(self, floor: float) -> Any:
        """The smallest value of the space above `floor`; the largest of all where none is."""
        if self.kind == "real":
            return min(math.nextafter(floor, math.inf), self.high)
        if self.kind == "power":
            powers = [self.base**k for k in range(int(self.low), int(self.high) + 1)]
            return next((power for power in powers if power > floor), powers[-1])
        steps = math.floor((floor - self.low) / self.step) + 1
        return int(min(self.low + max(steps, 0) * self.step, self.high))


class Space(BaseModel):
    """The parameters of a study, those that depend on another after it; and what was left out, with the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: tuple[Parameter, ...] = ()
    floors: dict[str, float] = {}  # key -> the fixed value it must exceed
    left_out: dict[str, str] = {}  # key -> why a study does not vary it
    cut: dict[str, str] = {}  # key -> the range that was asked or declared, where the data allows a part of it only

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(parameter.key for parameter in self.parameters)

    @property
    def numbers(self) -> tuple[str, ...]:
        return tuple(p.key for p in self.parameters if p.kind in ("real", "whole", "power"))

    def decode(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Raw proposals to spec values, relations kept."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            floor = self.floors.get(parameter.key)
            if parameter.above is not None and parameter.above in values:
                floor = float(values[parameter.above])
            values[parameter.key] = parameter.decode(raw[parameter.key], floor=floor)
        return values

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Spec values to raw proposals, for the parameters that are there."""
        return {p.key: p.encode(values[p.key]) for p in self.parameters if p.key in values}

    def summary(self) -> dict[str, str]:
        """key -> range in words, the popular keys first."""
        ordered = sorted(self.parameters, key=lambda parameter: not parameter.popular)
        return {parameter.key: parameter.span() for parameter in ordered}


def ordered(parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """Each parameter after the one it must exceed. ValueError where they wait for each other."""
    left, done = list(parameters), list[Parameter]()
    keys = {parameter.key for parameter in parameters}
    while left:
        ready = [p for p in left if p.above not in keys or p.above in {d.key for d in done}]
        if not ready:
            raise ValueError(f"parameters that depend on each other: {', '.join(p.key for p in left)}")
        done.extend(ready)
        left = [parameter for parameter in left if parameter not in ready]
    return tuple(done)


def _last_possible(weights: Sequence[float]) -> int:
    return max(index for index, weight in enumerate(weights) if weight > 0)


def _same(one: Any, other: Any) -> bool:
    """Equal, and both or neither a truth value: 1 is not True here."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)
