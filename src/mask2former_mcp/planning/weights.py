"""Which files a job starts from, and the spec they were trained with."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mask2former_mcp import lineage
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.lineage import Chosen, Parent
from mask2former_mcp.planning import arguments, stored_weights, transformers_folder
from mask2former_mcp.planning.merge import show
from mask2former_mcp.planning.request import ActionRequest

_WHOLE = (*lineage.WEIGHT_SUFFIXES, ".pkl")
_SUFFIXES = {
    "onnx_file": (".onnx",),
    "trt_engine": (".engine", ".plan", ".trt"),
    "pretrained_model_path": _WHOLE,
    "model_path": (*lineage.WEIGHT_SUFFIXES, ".onnx"),
}
_SIDECAR_LIMIT = 2_000_000


@dataclass(frozen=True, slots=True)
class Weights:
    """`files`: spec key -> chosen file; `known_spec`: what the weights were trained (or exported) with, if known."""

    files: Mapping[str, Chosen] = field(default_factory=dict)
    known_spec: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


def choose(
    request: ActionRequest,
    action: str,
    said: Mapping[str, Any],
    params: Mapping[str, str | Mapping[str, str]],
    parent: Parent | None,
    *,
    tensorrt: bool,
    metric: str,
    home: Path,
    left_s: Callable[[], float],
) -> Weights:
    """Resolve every parameter of the action that holds a model file.

    A file on this disk or in S3 may be named by an argument or an override; a choice such as `best` or `epoch=3` needs
    a parent.
    InvalidRequest when neither a file nor a parent says which weights to use.
    """
    named = arguments.model_files(request, said, action)
    files: dict[str, Chosen] = {}
    known: Mapping[str, Any] | None = parent.spec if parent is not None else None
    for key, (argument, text) in named.items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "trt_engine" and not tensorrt:
            continue
        if lineage.is_choice(text):
            if parent is None:
                raise InvalidRequest(
                    f"{argument}={text!r} chooses among a parent's checkpoints, but there is no parent_job_id",
                    fix="Pass parent_job_id (list_jobs), or the checkpoint file itself.",
                )
            continue
        files[key], own = _named(key, argument, text, home, left_s())
        if parent is None:
            known = own
    for key in _keys(action, params, tensorrt):
        if key in files or (parent is None and action == "train"):
            continue
        if parent is None:
            raise InvalidRequest(
                f"{action} needs {key}: no parent job and no file was named",
                fix=f"Pass parent_job_id (list_jobs finds it) or {key.rsplit('.', 1)[-1]}=<file>.",
            )
        choice = named.get(key, (None, None))[1]
        wanted = "export" if _wants_onnx(key, request, said) else _writer(key, parent)
        files[key] = lineage.parent_model(parent, key, choice, wanted=wanted, metric=metric)
    notes = _notes(parent, files, known, action)
    if not files:
        # Published weights fill the backbone only, and only where no checkpoint fills the whole network.
        for key, function in params.items():
            if isinstance(function, Mapping) and said.get(key):
                suffixes = _SUFFIXES["pretrained_model_path"]
                files[key] = _named_file("pretrained_weights", str(said[key]), suffixes, home, left_s())
    return Weights(files, known, notes)


def _named(key: str, argument: str, text: str, home: Path, left_s: float) -> tuple[Chosen, Mapping[str, Any] | None]:
    """The file or the transformers folder that the caller names, and the spec of its network if known."""
    leaf, place = key.rsplit(".", 1)[-1], Path(os.path.expanduser(text))
    is_read = leaf == "pretrained_model_path" or _is_run(key)
    if is_read and os.path.isdir(place):  # which is False, too, for names that cannot be
        return transformers_folder.choose(argument, place)
    suffixes = (*_WHOLE, ".onnx") if _is_run(key) else _SUFFIXES.get(leaf, lineage.WEIGHT_SUFFIXES)
    file = _named_file(argument, text, suffixes, home, left_s)
    return file, beside(file.path)


def _named_file(argument: str, text: str, suffixes: tuple[str, ...], home: Path, left_s: float) -> Chosen:
    if stored_weights.is_stored(text):
        return stored_weights.find(argument, text, suffixes, home, left_s)
    return lineage.explicit_file(argument, text, suffixes)


def _keys(action: str, params: Mapping[str, str | Mapping[str, str]], tensorrt: bool) -> list[str]:
    """The action's keys that hold a model file; with TensorRT the engine instead of the checkpoint."""
    if action == "train":
        return [key for key, function in params.items() if function == "ptm_if_no_resume_model"]
    keys = [key for key, function in params.items() if function in ("parent_model", lineage.FOLDER)]
    if action in ("evaluate", "inference"):
        return [key for key in keys if key.endswith("trt_engine") == tensorrt]
    return keys


def _is_run(key: str) -> bool:
    """Whether the file is run as it is, so that an ONNX file will do."""
    return key in ("evaluate.checkpoint", "inference.checkpoint")


def _writer(key: str, parent: Parent) -> lineage.Writer:
    """Whose file is meant: what was exported or quantized can be run, a quantized checkpoint exported, and an engine
    built of a quantized graph."""
    if parent.action == "export" and _is_run(key):
        return "export"
    if parent.action == "quantize":
        graph = parent.spec.get("quantize", {}).get("backend") == "modelopt.onnx"
        if _is_run(key) or key == ("gen_trt_engine.onnx_file" if graph else "export.checkpoint"):
            return "quantize"
    return lineage.writer(key)


def _wants_onnx(key: str, request: ActionRequest, said: Mapping[str, Any]) -> bool:
    backend = getattr(request, "backend", None) or said.get("quantize.backend")
    return key == "quantize.model_path" and backend == "modelopt.onnx"


def _notes(
    parent: Parent | None, files: Mapping[str, Chosen], known: Mapping[str, Any] | None, action: str
) -> tuple[str, ...]:
    notes = [f"{key}: {chosen.path.name}, {chosen.reason}" for key, chosen in files.items()]
    if parent is not None and parent.state != "succeeded":
        notes.append(f"{parent.job_id} ended as {parent.state}: its weights may be of an unfinished run")
    if parent is None and files and known is not None:
        is_folder = any(chosen.path.is_dir() for chosen in files.values())
        told = "config.json in the folder" if is_folder else f"{lineage.SIDECAR} beside the file"
        notes.append(f"the architecture is taken from {told}")
    if parent is None and files and known is None and action != "gen_trt_engine":
        notes.append(
            "nothing says what network these weights are of: the spec's defaults and overrides must fit them, or "
            "loading fails"
        )
    return tuple(notes)


def beside(path: Path) -> dict[str, Any] | None:
    """The spec written beside a checkpoint; None when there is none that can be read."""
    sidecar = path.parent / lineage.SIDECAR
    try:
        if sidecar.stat().st_size > _SIDECAR_LIMIT:
            return None
        spec = yaml.safe_load(sidecar.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return spec if isinstance(spec, dict) and isinstance(spec.get("model"), dict) else None


def is_tensorrt(request: ActionRequest, action: str, parent: Parent | None, said: Mapping[str, Any]) -> bool:
    """Whether the deploy side is meant: an engine is built, or an engine is evaluated or run."""
    if action == "gen_trt_engine":
        return True
    if action not in ("evaluate", "inference"):
        return False
    engine = getattr(request, "trt_engine", None) or said.get(f"{action}.trt_engine")
    checkpoint = getattr(request, "checkpoint", None)
    if engine and checkpoint:
        raise InvalidRequest(
            f"trt_engine={show(engine)} and checkpoint={show(checkpoint)} name two models", fix="Keep one of them."
        )
    return bool(engine) or (parent is not None and parent.action == "gen_trt_engine" and not checkpoint)
