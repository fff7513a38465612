"""From status.json into the store: metrics per epoch, progress, time left, phase, and the closing words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.keys import hidden
from mask2former_mcp.jobs.prepare import action_folder, resolved_spec
from mask2former_mcp.jobs.series import best_epoch, headline
from mask2former_mcp.jobs.status import Run, StatusReader
from mask2former_mcp.jobs.store import JobStore

PHASES = {
    JobState.SUCCEEDED: "done",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.LOST: "lost",
}
DIVERGED = 1.5  # times the first epoch's loss: a loss that merely wavers stays below
USELESS = 0.001  # of any metric, all of which are 0..1
_PRINTED = re.compile(r"\b(mIOU|Acc): (\d+\.\d+|nan)\b")
_PRINTED_AS = {"mIOU": "mIoU", "Acc": "ACC_all"}
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)))


class Follower:
    """Follows the status of one attempt. A new one, made after a crash, reads it again from where it began."""

    def __init__(self, store: JobStore, job: Job, secrets: Sequence[str] = ()) -> None:
        self.store = store
        self._secrets = secrets
        self.job = job
        folders = Folders.of(store.home, job)
        spec = resolved_spec(job, folders)
        attempt = store.history.attempt(job.id, job.attempt)
        train = (spec.get("train") or {}) if job.action == "train" else {}
        self._reader = StatusReader(
            action_folder(job, spec, folders) / "status.json",
            offset=attempt.status_offset if attempt else 0,
            interval=int(train.get("validation_interval") or 1),
            epochs=int(train["num_epochs"]) if train.get("num_epochs") else None,
        )
        self._written: dict[int, dict[str, float]] = {}
        self._shown: dict[str, Any] = {}
        self._waiting = ""

    @property
    def run(self) -> Run:
        return self._reader.run

    def look(self, *, final: bool = False, waiting: str = "") -> None:
        """Store what is new; costs nothing when nothing is. `waiting`: the phase while the platform cannot be asked."""
        if not self._reader.advance(final=final) and waiting == self._waiting:
            return
        self._waiting = waiting
        job, run = self.job, self.run
        shown: dict[str, Any] = {
            "phase": self._clean(waiting or run.phase),
            "progress": run.progress,
            "eta_s": None if final else run.eta_s,
        }
        for epoch, values in run.measured.items():
            if self._written.get(epoch) != values:
                self.store.series.write(job.id, job.attempt, epoch, values)
                self._written[epoch] = dict(values)
                shown["metrics"] = {}
        if "metrics" in shown:
            shown["metrics"] = headline(self.store.series.epochs(job.id), job.plan.metric)
        if shown != self._shown:
            self._shown = shown
            self.store.update(job.id, job.attempt, **shown)

    def read_log(self, lines: Sequence[str]) -> None:
        """TAO's deploy image prints its metrics (0..1, two decimals) and writes none into status.json."""
        job = self.job
        if job.plan.runtime != "tao" or job.action != "evaluate" or self.run.measured:
            return
        found = {match[1]: float(match[2]) for line in lines if (match := _PRINTED.search(line))}
        values = {_PRINTED_AS[name]: value for name, value in found.items()}
        if values:
            self.store.series.write(job.id, job.attempt, 0, values)
            metrics = headline(self.store.series.epochs(job.id), job.plan.metric)
            self.store.update(job.id, job.attempt, metrics=metrics)

    def _clean(self, text: str) -> str:
        return hidden(text.translate(_CONTROL), self._secrets)


def success_message(store: JobStore, job: Job, run: Run) -> str:
    """What a finished job says of itself."""
    epochs = store.series.epochs(job.id)
    parts: list[str] = []
    best = best_epoch(epochs, job.plan.metric)
    if job.action == "train":
        parts += _doubts(epochs, job.plan.metric)
    if best is not None and job.action == "train":
        parts.append(f"Best {job.plan.metric} {epochs[best][job.plan.metric]:.4f} at epoch {best} (counted from 0).")
    if job.action == "quantize" and (cost := _cost_of_quantization(epochs.get(0, {}))):
        parts.append(cost)
    if job.action == "inference" and run.passed_over:
        parts.append(f"{run.passed_over} inference/unreadable.json names them.")
    return " ".join(parts) or f"{job.action} finished."


def _doubts(epochs: Mapping[int, Mapping[str, float]], metric: str) -> Iterator[str]:
    """Why a training that ran to its end may have taught nothing."""
    losses = [values["train_loss"] for _, values in sorted(epochs.items()) if "train_loss" in values]
    if losses and losses[-1] > DIVERGED * losses[0]:
        yield f"It diverged: train_loss went from {losses[0]:.3g} to {losses[-1]:.3g}. Lower learning_rate to a tenth."
    best = max((values[metric] for values in epochs.values() if metric in values), default=None)
    if best is not None and best < USELESS:
        yield f"It finds nothing yet: the best {metric} is {best:.4f}. Look at its pictures before you use it."


def _cost_of_quantization(measured: Mapping[str, float]) -> str:
    """Size, latency and metrics before and after, of what was measured."""
    parts = []
    for name, unit, digits in (("size_mb", "MB", 2), ("latency_ms", "ms an image", 1)):
        if {f"{name}_before", f"{name}_after"} <= measured.keys():
            before, after = measured[f"{name}_before"], measured[f"{name}_after"]
            parts.append(f"{before:.{digits}f} -> {after:.{digits}f} {unit}")
    for name in ("mIoU", "PQ", "AP"):
        if {name, f"{name}_drop"} <= measured.keys():
            parts.append(f"{name} {measured[name] + measured[f'{name}_drop']:.4f} -> {measured[name]:.4f}")
    return f"Quantized: {', '.join(parts)}." if parts else ""
