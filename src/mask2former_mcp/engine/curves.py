"""What a training run leaves to be plotted: metrics.csv, TensorBoard events, and W&B where its key is there."""

import csv
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mask2former_mcp.engine.status import finite
from mask2former_mcp.spec.wandb import Wandb

COLUMNS = (
    *("epoch", "step", "train_loss", "val_loss", "mIoU", "PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"),
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "ACC_all", "lr", "seconds"),
)


class Curves:
    """One row per epoch in `metrics.csv`, scalars by step elsewhere. Rows of epochs that are trained again drop out,
    and so do TensorBoard's points of steps that are."""

    def __init__(
        self, folder: Path, wandb: Wandb, *, first_epoch: int, first_step: int, spec: Mapping[str, Any]
    ) -> None:
        """first_epoch, first_step: of what comes now; 0 in a new folder."""
        self._csv = folder / "metrics.csv"
        self._rows = [row for row in _rows(self._csv) if int(row["epoch"]) < first_epoch]
        self._write()
        events = str(folder / "lightning_logs" / "version_1")
        self._events = SummaryWriter(events, purge_step=first_step or None)
        self._wandb = _start_wandb(folder, wandb, spec)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._tell_wandb("log", dict(values), step=step)

    def epoch(self, row: Mapping[str, float]) -> None:
        """Adds the epoch's row; what was not measured stays empty."""
        self._rows.append({name: _short(value) for name, value in finite(row).items() if name in COLUMNS})
        self._write()
        self._events.flush()

    def close(self) -> None:
        self._events.close()
        self._tell_wandb("finish")

    def _tell_wandb(self, what: str, *values: Any, **named: Any) -> None:
        """What goes wrong there is said once, and ends no training."""
        if self._wandb is None:
            return
        try:
            getattr(self._wandb, what)(*values, **named)
        except Exception as error:  # noqa: BLE001 - somebody else's service
            self._wandb = None
            print(f"W&B failed, this run is not logged to it any more: {error}", flush=True)

    def _write(self) -> None:
        partial = self._csv.with_suffix(".csv.partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self._rows)
        partial.replace(self._csv)


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.6g}"


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("epoch")]


def _start_wandb(folder: Path, settings: Wandb, spec: Mapping[str, Any]) -> Any:
    """A W&B run, or None: without its key in the environment nothing leaves the machine."""
    if not settings.enable or not os.environ.get("WANDB_API_KEY"):
        return None
    try:
        return importlib.import_module("wandb").init(
            project=settings.project or None,
            entity=settings.entity or None,
            group=settings.group or None,
            name=settings.name or None,
            id=settings.run_id or None,
            resume="allow" if settings.run_id else None,
            tags=list(settings.tags),
            reinit=settings.reinit,
            sync_tensorboard=settings.sync_tensorboard,
            save_code=settings.save_code,
            dir=str(folder),
            config=dict(spec),
        )
    except ImportError:
        why = "the wandb package is not installed"
    except Exception as error:  # noqa: BLE001 - somebody else's service
        why = str(error)
    print(f"wandb.enable is true and WANDB_API_KEY is set, but this run is not logged to W&B: {why}", flush=True)
    return None
