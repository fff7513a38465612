"""Checkpoint files in the layout that TAO (PyTorch Lightning) writes, with tensors and plain Python values only.

`torch.load(path, weights_only=True)` opens every file written here.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mask2former_mcp.engine import numpy_pickle, transformers_folder
from mask2former_mcp.engine.model import position_tables, weights

PREFIX = "model."
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
    latest: bool = True,
) -> None:
    """Writes a checkpoint and points `mask2former_model_latest.pth` beside it at it (with `latest`). Both appear whole
    or not at all.

    model, optimizer, scheduler: the object or its state dict; rng: see `random_state`; progress: what the loop needs to
    go on.
    Raises TypeError naming the place of a value that is neither a tensor nor a plain Python value, and OSError when the
    file cannot be written.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    content = {
        "epoch": epoch,
        "global_step": global_step,
        "pytorch-lightning_version": LIGHTNING_VERSION,
        "state_dict": {PREFIX + name: value.detach().cpu() for name, value in state.items()},
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


class Loaded(NamedTuple):
    """What loading did with each name: taken from the file, missing in it, unknown to the model, or left as it was.

    interpolated: taken, but resized: position tables of another window or image. mismatched: the names left as they
    were because of their shape, with (shape in the file, shape in the network). layout: what kind of file it was.
    """

    taken: list[str]
    missing: list[str]
    unknown: list[str]
    kept_fresh: list[str]
    interpolated: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    layout: str

    def report(self, path: Path) -> dict[str, Any]:
        """The same as plain values, for `weights.json`."""
        return {
            "file": str(path),
            "layout": self.layout,
            "matched": self.taken,
            "interpolated": self.interpolated,
            "mismatched": {n: {"file": list(f), "network": list(own)} for n, (f, own) in self.mismatched.items()},
            "skipped": self.unknown,
            "missing": self.missing,
        }

    def summary(self) -> str:
        return (
            f"{len(self.taken)} tensors matched ({len(self.interpolated)} interpolated), {len(self.mismatched)} of "
            f"another shape, {len(self.unknown)} skipped, {len(self.missing)} not in the file ({self.layout})"
        )


def load_weights(model: nn.Module, path: Path, *, strict: bool = True) -> Loaded:
    """Copies the weights of a whole Mask2Former into a network.

    path: a checkpoint (ours, TAO's, or a bare state dict), detectron2's `.pkl` or `.pth`, or a transformers folder.
    strict: every name and shape must fit. Otherwise, for fine-tuning: class head and queries of another size stay
    fresh, position tables are resized, names may be missing. Raises ValueError that says which spec value the file was
    made with, before anything is copied.
    """
    found, layout = _whole_network(path)
    own = model.state_dict()
    interpolated: list[str] = []
    if not strict:
        found, interpolated = position_tables.fit(found, own)
    differ = _differences(found, own)
    kept_fresh = [] if strict else sorted(name for name in differ if name.startswith(weights.TASK_SPECIFIC))
    _refuse_other_shapes(path, "network", differ, kept_fresh)
    missing = sorted(name for name in own.keys() - found.keys() if not _recomputed(name))
    unknown = sorted(name for name in found.keys() - own.keys() if not _recomputed(name))
    if (strict and (missing or unknown)) or len(missing) > len(own) // 2:
        raise ValueError(
            f"{path} does not fit this network: {len(missing)} names are missing (first: {missing[:2]}), "
            f"{len(unknown)} are not known (first: {unknown[:2]}). Use the architecture keys that it was trained with."
        )
    taken = sorted(name for name in (own.keys() & found.keys()) - set(kept_fresh) if not _recomputed(name))
    model.load_state_dict({name: found[name] for name in taken}, strict=False)
    mismatched = {name: differ[name] for name in kept_fresh}
    return Loaded(taken, missing, unknown, kept_fresh, interpolated, mismatched, layout)


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


def _multiplied_out(state: Mapping[str, Tensor], by: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """8-bit weights as the numbers that they stand for."""
    out = dict(state)
    for name, scale in by.items():
        key = name if name in out else PREFIX + name
        out[key] = out[key].to(scale.dtype) * scale.reshape(-1, *[1] * (out[key].dim() - 1))
    return out


def load_backbone(model: nn.Module, path: Path) -> Loaded:
    """Copies a published Swin or EfficientViT file into `model.backbone`; its classifier is left out.

    Position tables of another window or image are resized. Raises ValueError where another shape differs.
    """
    backbone = model.get_submodule("backbone")
    raw = numpy_pickle.weights(path) if path.suffix == ".pkl" else _state_dict(load(path), path)
    own = backbone.state_dict()
    is_swin = "patch_embed.proj.weight" in own
    found = weights.from_swin(raw) if is_swin else weights.from_efficientvit(raw)
    found, interpolated = position_tables.fit(found, own)
    _refuse_other_shapes(path, "backbone", {f"backbone.{n}": pair for n, pair in _differences(found, own).items()}, [])
    # Output norms do not exist in a classifier's file: they stay fresh.
    missing = sorted(name for name in own.keys() - found.keys() if not _recomputed(name))
    if len(missing) > len(own) // 2:
        lack = f"{len(missing)} of {len(own)} names are missing, first {missing[:2]}"
        raise ValueError(f"{path} holds no {'Swin' if is_swin else 'EfficientViT'} backbone: {lack}.")
    taken = sorted(own.keys() & found.keys())
    backbone.load_state_dict({name: found[name] for name in taken}, strict=False)
    unknown = sorted(found.keys() - own.keys())
    return Loaded(taken, missing, unknown, missing, interpolated, {}, "published backbone")


def _whole_network(path: Path) -> tuple[dict[str, Tensor], str]:
    """A Mask2Former's state dict under our names, "no object" first, and the kind of file it came from."""
    if path.is_dir():
        return weights.from_transformers_file(transformers_folder.read(path)), "transformers folder"
    if path.suffix == ".pkl":
        return weights.from_detectron2(numpy_pickle.weights(path)), "detectron2 pickle"
    content = load(path)
    state = _state_dict(content, path)
    # detectron2 keeps the weights under `model`, beside its own trainer's state; Lightning under `state_dict`.
    if "state_dict" not in content and "model" in content:
        return weights.from_detectron2(state), "detectron2 checkpoint"
    return weights.without_prefix(_multiplied_out(state, scales(content)), PREFIX), "checkpoint"


Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def _differences(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Shapes:
    """Names in both whose shapes differ: (in the file, in the network)."""
    pairs = {name: (tuple(found[name].shape), tuple(own[name].shape)) for name in own.keys() & found.keys()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and not _recomputed(name)}


def _refuse_other_shapes(path: Path, what: str, differ: Shapes, allowed: list[str]) -> None:
    if wrong := sorted(differ.keys() - set(allowed), key=weights.explains_most):
        raise ValueError(f"{path} does not fit this {what}: {weights.explain(wrong[0], *differ[wrong[0]])}")


def _recomputed(name: str) -> bool:
    return name.endswith(weights.RECOMPUTED)


def random_state() -> dict[str, Any]:
    """State of the Python, NumPy and PyTorch generators as plain values."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [str(kind), [int(key) for key in keys], int(place), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": [state.cpu() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets the generators back. CUDA's are left alone where the number of devices differs."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([saved.cpu() for saved in state["cuda"]])


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


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights: expected a state dict, alone or under 'state_dict' or 'model'.")
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
