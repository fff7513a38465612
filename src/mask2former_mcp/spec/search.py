"""Search ranges: what a study may vary, declared beside the field and carried in the schema as `x-m2f-search`.

A range is relative to the value that a run would use anyway: a rate is searched a decade either way of it on a log
scale, so a good starting point stays in the middle of its own search space. Bounds of the field clip the range.
"""

from dataclasses import dataclass
from typing import Any, Literal

KEYWORD = "x-m2f-search"


@dataclass(frozen=True)
class Search:
    """One field's search range.

    `factor` spans [value / factor, value * factor]; `low`, `high` are absolute; `choices` lists the values.
    `enabled` is whether a study searches it unasked. `frozen` says why nothing should search it at all.
    """

    scale: Literal["log", "linear", "choice"] | None = None
    enabled: bool = False
    factor: float | None = None
    low: float | None = None
    high: float | None = None
    step: int | None = None
    choices: tuple[Any, ...] | None = None
    note: str | None = None
    frozen: str | None = None

    def keyword(self) -> dict[str, Any]:
        """The value of the schema keyword: only what is said, `enabled` always."""
        said = {name: getattr(self, name) for name in ("scale", "factor", "low", "high", "step", "note", "frozen")}
        if self.choices is not None:
            said["choices"] = list(self.choices)
        return {"enabled": self.enabled, **{name: value for name, value in said.items() if value is not None}}


def rate(*, enabled: bool = True, note: str | None = None) -> Search:
    """A rate: log scale, a decade either way of the resolved value."""
    return Search(scale="log", factor=10.0, enabled=enabled, note=note)


def weight(note: str | None = None) -> Search:
    """A loss weight: log scale, a factor of four either way, only on request."""
    return Search(scale="log", factor=4.0, note=note)


def frozen(why: str) -> Search:
    return Search(frozen=why)


RESOLUTION = frozen("Trials at different resolutions cost different time and memory; choose it before the search.")
METRIC = frozen("Changes the images that the metric is measured on, so trials could not be compared.")
CLASSES = frozen("Comes from the annotations; another value trains another problem.")
ARCHITECTURE_NOTE = "Architecture: a trial that changes it cannot continue from another trial's checkpoint."
