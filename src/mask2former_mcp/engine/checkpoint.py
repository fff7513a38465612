"""Checkpoint files in the layout that TAO (PyTorch Lightning) writes, with tensors and plain Python values only.

`torch.load(path, weights_only=True)` opens every file written here.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PREFIX = "model."
LOSS_WEIGHTS = "criterion.empty_weight"
"""A constant of TAO's loss, which is part of its module: its strict loading wants it in the state dict."""
LATEST = "mask2former_model_latest.pth"
LIGHTNING_VERSION = "2.6.6"  # the layout written is that of this version
_NAME = re.compile(r"model_epoch_(\d{3,})_step_(\d{5,})\.pth")


def file_name(epoch: int, step: int) -> str:
    """TAO's name of a checkpoint; epochs count from 0."""
    return f"model_epoch_{epoch:03d}_step_{step:05d}.pth"


def parse_name(name: str) -> tuple[int, int] | None:
    """Epoch and step of a checkpoint's base name, None for any other file."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def save(
    path: Path,
    *,
    model: nn.Module | Mapping[str, Tensor],
    epoch: int,
    global_step: int,
    optimizer: Optimizer | Mapping[str, Any] | None = None,
    scheduler: Any = None,
    rng: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    progress: Mapping[str, Any] | None = None,
    beside: Mapping[str, Tensor] | None = None,
    latest: bool = True,
) -> None:
    """Writes a checkpoint and points `mask2former_model_latest.pth` beside it at it (with `latest`). Both appear whole
    or not at all.

    model, optimizer, scheduler: the object or its state dict; rng: random_state.snapshot(); progress: what the loop
    needs to go on; beside: tensors of the state dict that are not the network's, under their whole names.
    Raises TypeError naming the place of a value that is neither a tensor nor a plain Python value, and OSError when the
    file cannot be written.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    content = {
        "epoch": epoch,
        "global_step": global_step,
        "pytorch-lightning_version": LIGHTNING_VERSION,
        "state_dict": {PREFIX + name: value.detach().cpu() for name, value in state.items()} | dict(beside or {}),
        "optimizer_states": [] if optimizer is None else [_state(optimizer)],
        "lr_schedulers": [] if scheduler is None else [_state(scheduler)],
        "hyper_parameters": dict(hyper_parameters or {}),
        "metrics": dict(metrics or {}),
        "rng": dict(rng or {}),
        "progress": dict(progress or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            torch.save(_plain(content, "checkpoint"), stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer turns a full disk into a complaint about positions
        room = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(
            f"{path} could not be written ({_reason(error)}; {room:.0f} MiB are free there)."
            " Earlier checkpoints are whole: make room and resume."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    if latest:
        _point_latest_at(path)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint, without running anything in it.

    Other programs store objects of their own beside the weights (TAO its configuration): these come back as `Inert`.
    Raises FileNotFoundError, or ValueError where the file is no readable checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        with torch.serialization.safe_globals([(Inert, name) for name in foreign]):
            content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own text ends in the advice to read such a file unsafely.
        raise ValueError(
            f"{path} is no checkpoint, or holds objects that cannot be read without running them."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "it ends too early")
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors and plain values: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint.")  # noqa: TRY004 - a bad file
    return content


class Inert:
    """Stands for an object of a class that a file names: takes whatever the file has for it and does nothing."""

    def __new__(cls, *_: object, **__: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def quantization(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `quantize` notes in a checkpoint that it writes; empty in all others."""
    noted = content.get("hyper_parameters")
    found = noted.get("quantization") if isinstance(noted, dict) else None
    return found if isinstance(found, dict) else {}


def scales(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name of an 8-bit weight -> its scales [rows, 1]."""
    return dict(quantization(content).get("scales") or {})


def weight_bytes(content: Mapping[str, Any]) -> int:
    """Bytes of the tensors that inference needs: weights and scales, no optimizer state."""
    state = content.get("state_dict", content)
    tensors = [value for value in state.values() if isinstance(value, Tensor)] + list(scales(content).values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _reason(error: BaseException) -> str:
    """What the system said, behind whatever a library made of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


def _state(thing: Any) -> Mapping[str, Any]:
    state: Mapping[str, Any] = thing if isinstance(thing, Mapping) else thing.state_dict()
    return state


def _plain(value: Any, place: str) -> Any:
    """The same value made of tensors and plain Python types; NumPy numbers become Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | Tensor):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key, place): _plain(item, f"{place}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(f"{place} is a {type(value).__name__}: a checkpoint holds only tensors and plain Python values.")


def _point_latest_at(path: Path) -> None:
    """`latest` is a relative symbolic link, so that a moved folder stays whole; a copy where links do not exist."""
    latest = path.with_name(LATEST)
    fresh = path.with_name(f".{LATEST}.{os.getpid()}.partial")
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(path.name)
    except OSError:
        shutil.copyfile(path, fresh)
    fresh.replace(latest)
