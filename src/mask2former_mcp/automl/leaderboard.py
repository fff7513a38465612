"""Trials side by side, and which of them won.

A trial's value is its best epoch's, among the epochs that kept a checkpoint. A trial that was stopped early (at a rung,
by the budget, by hand) wins only where no trial was finished, and only with a checkpoint. Failed trials never win, but
for an only trial: its study fails with it, and what it kept can be used as that of a failed plain run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["running", "finished", "pruned", "stopped", "failed"]
SHOWN = 20


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial. `epoch` is counted from 0, as in checkpoint names; `epochs` is how many it trained; `checkpoint`:
    whether it kept one that it may win with."""

    trial: int
    status: Status
    job_id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    metric: float | None = None
    epoch: int | None = None
    epochs: int = 0
    duration_s: float | None = None
    checkpoint: bool = False
    cause: str = ""
    adjustments: tuple[str, ...] = ()

    def line(self) -> dict[str, Any]:
        """The compact form: what a leaderboard shows."""
        return {
            "trial": self.trial,
            "job_id": self.job_id,
            "parameters": {key: _short(value) for key, value in self.parameters.items()},
            "metric": None if self.metric is None else round(self.metric, 4),
            "epoch": self.epoch,
            "status": self.status,
            "duration_s": None if self.duration_s is None else round(self.duration_s, 1),
            **({"cause": self.cause[:200]} if self.cause else {}),
        }


def winner(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The best finished trial; of equals the earlier one. None where no trial left anything to win with."""
    for among in (("finished",), ("stopped", "pruned"), ("failed",)):
        able = [trial for trial in trials if trial.status in among and trial.metric is not None and trial.checkpoint]
        if able:
            return max(able, key=lambda trial: (trial.metric or 0.0, -trial.trial))
    return None


def leading(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Who leads while the study goes on: who would win now, or, before any trial has ended, the best one running."""
    able = [trial for trial in trials if trial.status == "running" and trial.metric is not None]
    return winner(trials) or max(able, key=lambda trial: (trial.metric or 0.0, -trial.trial), default=None)


def ranked(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Finished ones first, best on top; then those still running or stopped, by what they reached; failed ones last."""
    order = {"finished": 0, "running": 1, "stopped": 1, "pruned": 2, "failed": 3}
    return sorted(
        trials,
        key=lambda t: (order[t.status], -(t.metric if t.metric is not None else -1.0), t.trial),
    )


def compact(trials: Sequence[TrialRecord], *, shown: int = SHOWN) -> list[dict[str, Any]]:
    """At most `shown` lines, the best ones; trial 0 always among them, because it is what plain training gives."""
    lines = ranked(trials)
    kept = lines[:shown]
    plain = next((trial for trial in lines if trial.trial == 0), None)
    if plain is not None and plain not in kept:
        kept = [*kept[:-1], plain]
    return [trial.line() for trial in kept]


def table(trials: Sequence[TrialRecord], metric: str) -> str:
    """A text table for logs and summaries."""
    rows = [f"{'trial':>5}  {metric:>7}  {'epochs':>6}  {'status':<9} parameters"]
    for trial in ranked(trials):
        value = "-" if trial.metric is None else f"{trial.metric:.4f}"
        said = ", ".join(f"{key.rsplit('.', 1)[-1]}={_short(each)}" for key, each in trial.parameters.items())
        rows.append(f"{trial.trial:>5}  {value:>7}  {trial.epochs:>6}  {trial.status:<9} {said}")
    return "\n".join(rows)


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
