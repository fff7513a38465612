"""How far a loop is: a line for people, and throttled fields for status.json."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mask2former_mcp.engine.status import StatusLog

STATUS_EVERY_S = 2.0
PRINT_EVERY_S = 10.0  # into a log file; a terminal is redrawn with every status line
RECENT = 100  # times that `step` was called, from which the present pace is taken
_Item = TypeVar("_Item")


@dataclass
class Progress:
    """Steps done of `total`; ETA from the mean time of the steps of this run, plus what else was measured to come."""

    status: StatusLog
    total: int
    done: int = 0
    message: str = "Training loop in progress"
    unit: str = "step"
    _first: int = field(init=False)
    _start: float = field(init=False)
    _outside: float = field(init=False, default=0.0)  # seconds in validation, not in steps
    _told: float = field(init=False, default=-1e9)
    _printed: float = field(init=False, default=-1e9)
    _waited: float = field(init=False, default=0.0)  # seconds for data, in steps
    _recent: deque[tuple[float, float, int]] = field(init=False, default_factory=lambda: deque(maxlen=RECENT + 1))

    def __post_init__(self) -> None:
        self._first, self._start = self.done, time.monotonic()

    def step(self, note: str, *, count: int = 1, ahead_s: float = 0.0, **fields: float | str) -> None:
        """One more step, or `count`. ahead_s: seconds of other work that is still to come (validations)."""
        self.done = min(self.total, self.done + count)
        now = time.monotonic()
        self._recent.append((now, self._waited, self.done))
        if now - self._told < STATUS_EVERY_S and self.done < self.total:
            return
        self._told = now
        eta = self.seconds_per_step() * (self.total - self.done) + ahead_s
        place: dict[str, Any] = {**fields, "progress": round(self.done / self.total, 4), "eta_s": round(eta, 1)}
        self.status.running(
            self.message,
            **place,
            time_per_step=clock(self.seconds_per_step()),
            eta=clock(eta),
        )
        terminal = sys.stdout.isatty()
        if terminal or now - self._printed >= PRINT_EVERY_S or self.done == self.total:
            self._printed = now
            percent = 100 * self.done / self.total
            text = f"{percent:3.0f} %  {self.unit} {self.done}/{self.total}  {note}  ETA {clock(eta, whole=True)}"
            end = "\n" if not terminal or self.done == self.total else ""
            print(f"\r{text:<100}" if terminal else text, end=end, flush=True)

    def outside(self, seconds: float) -> None:
        """Time that passed in something else than steps."""
        self._outside += seconds
        self._recent.clear()

    def seconds_per_step(self) -> float:
        steps = self.done - self._first
        return max(0.0, time.monotonic() - self._start - self._outside) / steps if steps else 0.0

    def recent_seconds_per_step(self) -> float:
        """Over the last steps only: how long one takes once everything runs."""
        if len(self._recent) < 2:
            return 0.0
        (first, _, before), (last, _, done) = self._recent[0], self._recent[-1]
        return (last - first) / max(1, done - before)

    def waiting(self, source: Iterator[_Item]) -> Iterator[_Item]:
        """What the source gives; the time until it does counts as waiting for data."""
        while True:
            started = time.monotonic()
            item = next(source, None)
            self._waited += time.monotonic() - started
            if item is None:
                return
            yield item

    def recent_waiting(self) -> float:
        """The share of the last steps' time that passed waiting for data, 0 to 1."""
        if len(self._recent) < 2:
            return 0.0
        (first, before, _), (last, after, _) = self._recent[0], self._recent[-1]
        return (after - before) / (last - first) if last > first else 0.0


def clock(seconds: float, *, whole: bool = False) -> str:
    """h:mm:ss, with a fraction below 10 seconds unless `whole`."""
    full = round(seconds) if whole else int(seconds)
    text = f"{full // 3600}:{full // 60 % 60:02d}:{full % 60:02d}"
    return text if whole or seconds >= 10 else f"{text}.{int(seconds % 1 * 1000):03d}"
