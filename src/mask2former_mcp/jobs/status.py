"""Reads a growing status.json, ours or TAO's, and says what the run's last segment has reached.

TAO's quirks, each handled here: NaN literals; the last kpi repeated on every later line, so that only a line whose
message announces a measurement holds one; kpi lines without an epoch, whose place is told by their neighbours; a torn
last line, also with the next run's first line glued to it; several runs appended to one file.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MEASURED = re.compile(r"(train|eval|val|validation|test) metrics generated", re.IGNORECASE)
_DONE = re.compile(r"finished successfully", re.IGNORECASE)
_LOOP = re.compile(r"training loop in progress", re.IGNORECASE)
_ETA = re.compile(r"(?:(\d{1,6}) days?, )?(\d{1,6}):(\d{1,2}):(\d{1,2})(?:\.\d+)?")
_CLOCK = re.compile(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d{1,9})?)")
_TAIL = 1 << 16  # bytes at a file's end that its last words are looked for in
_LINE_START = '{"date"'
_MAX_TEXT = 500
_MAX_WHOLE = 2**53  # beyond it a float is no exact number, and far beyond it SQLite's integers end


@dataclass
class Run:
    """What is known of the run: its last segment's end, and values per epoch (not finite ones included)."""

    segments: int = 0
    done: bool = False
    failure: str | None = None
    message: str = ""
    phase: str = ""
    progress: float = 0.0
    eta_s: float | None = None
    epoch: int | None = None  # of the last loop line
    passed_over: str = ""  # what an inference says when it could not read some images
    measured: dict[int, dict[str, float]] = field(default_factory=dict)


class StatusReader:
    """Follows `path` from byte `offset` on. `interval` is the run's validation interval in epochs, `epochs` its length;
    both help to place what TAO writes without an epoch."""

    def __init__(self, path: Path, *, offset: int = 0, interval: int = 1, epochs: int | None = None) -> None:
        self.path = path
        self.run = Run()
        self._offset = offset
        self._interval = max(interval, 1)
        self._epochs = epochs
        self._looping = False  # the segment's training loop has begun
        self._before: bool | None = None  # validation lines stand before their epoch's loop line
        self._resumed = False  # so that the first epoch is not 0
        self._held: dict[str, float] = {}  # measured in a resumed run before any line named an epoch

    def advance(self, *, final: bool = False) -> bool:
        """Read what is new; whether there was anything. `final`: nobody writes any more, so a last line without its
        newline counts if it is whole."""
        try:
            with self.path.open("rb") as stream:
                if stream.seek(0, 2) < self._offset:
                    self._offset = 0  # written anew
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return False
        end = len(data) if final else data.rfind(b"\n") + 1
        self._offset += end
        lines = [value for raw in data[:end].splitlines() if (value := parse_line(raw)) is not None]
        for line in lines:
            self._take(line)
        return bool(lines)

    def _take(self, line: dict[str, Any]) -> None:
        run, message = self.run, _text(line.get("message") or "")
        status = str(line.get("status") or "").upper()
        if status == "STARTED":
            run.segments += 1
            run.done, run.failure, run.epoch, run.passed_over, self._looping = False, None, None, "", False
            self._resumed, self._held = False, {}
        if message.lower().startswith("resuming training"):
            self._resumed = True
        run.message = message
        if _whole(line.get("unreadable")):
            run.passed_over = message
        if status == "FAILURE":
            run.done, run.failure = False, message or "failed without a reason"
        elif _DONE.search(message):
            run.done, run.failure = True, None
        measured = _MEASURED.search(message)
        if _LOOP.search(message) or message.lower().startswith("starting training loop"):
            self._looping = True
        if measured:
            self._measure(line, training=measured[1].lower() == "train")
        elif _LOOP.search(message) and (epoch := _whole(line.get("epoch"))) is not None:
            run.epoch = epoch
            if self._held:
                run.measured.setdefault(epoch, {}).update(self._held)
                self._before, self._held = True, {}
        self._place(line, message)

    def _measure(self, line: dict[str, Any], *, training: bool) -> None:
        kpi = line.get("kpi")
        if not isinstance(kpi, dict):
            return
        # TAO repeats old values beside new ones: a training line is news about training only, and the other way round.
        values = {
            _text(name): number
            for name, value in kpi.items()
            if (number := _number(value)) is not None and (str(name) in ("train_loss", "lr", "loss")) == training
        }
        epoch = _whole(line.get("epoch"))
        if epoch is None and self._resumed and self._looping and self.run.epoch is None and not training:
            self._held = values
            return
        if epoch is None:
            epoch = self._epoch_of(training=training)
        if epoch is not None and values:
            self.run.measured.setdefault(epoch, {}).update(values)

    def _epoch_of(self, *, training: bool) -> int | None:
        """Whose measurement a line without an epoch is. Loop lines come once an epoch; the training line follows its
        epoch's loop line; a validation line stands before or after it, which the first epoch shows."""
        last = self.run.epoch
        if last is None:
            if not self._looping:
                return 0 if not training and self._epochs is None else None  # evaluate has one; else a sanity check
            if not training and self._interval == 1:
                self._before = True
            return 0 if training else self._interval - 1
        if training:
            return last
        candidates = [epoch for epoch in (last, last + 1) if (epoch + 1) % self._interval == 0]
        if len(candidates) == 1:
            return candidates[0]
        return last + 1 if self._before else last

    def _place(self, line: dict[str, Any], message: str) -> None:
        run = self.run
        epochs = self._epochs
        if (last := _whole(line.get("max_epoch"))) is not None:
            epochs = last + 1
        progress = _number(line.get("progress"))
        if progress is None and run.epoch is not None and epochs and _LOOP.search(message):
            progress = (run.epoch + 1) / epochs
        if progress is not None and math.isfinite(progress):
            run.progress = min(max(progress, 0.0), 1.0)
        if (eta := read_eta(line.get("eta_s", line.get("eta")))) is not None:
            run.eta_s = eta
        if run.epoch is not None and _LOOP.search(message):
            run.phase = f"epoch {run.epoch + 1}" + (f" of {epochs}" if epochs else "")
        elif message and not (run.epoch is not None and _MEASURED.search(message)):
            run.phase = message.rstrip(".")[:120]
        if run.done:
            run.progress, run.eta_s = 1.0, None


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """One line as an object; None for what is not one. NaN and Infinity literals are numbers here."""
    text = raw.decode("utf-8", errors="replace").strip()
    for start in (0, text.rfind(_LINE_START)):
        if start < 0:
            continue
        try:
            value = json.loads(text[start:])
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None


def read_eta(value: object) -> float | None:
    """Seconds from a number, or from TAO's `[N days, ]H:MM:SS`."""
    if isinstance(value, str) and (match := _ETA.fullmatch(value.strip())):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    number = _number(value) if not isinstance(value, str) else None
    return number if number is not None and math.isfinite(number) and number >= 0 else None


def step_seconds(path: Path) -> float | None:
    """The mean seconds of a step that a run told last (`time_per_step`, H:MM:SS.mmm); None where it told none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _TAIL))
            lines = stream.read().splitlines()
    except OSError:
        return None
    for raw in reversed(lines):
        text = (parse_line(raw) or {}).get("time_per_step")
        if isinstance(text, str) and (match := _CLOCK.fullmatch(text.strip())):
            return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) or None
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _whole(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 0 <= number <= _MAX_WHOLE else None


def _text(value: object) -> str:
    """Bounded, and without half surrogate pairs, which JSON can spell and SQLite cannot hold."""
    return str(value).encode(errors="replace").decode()[:_MAX_TEXT]
