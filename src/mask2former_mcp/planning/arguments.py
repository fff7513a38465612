"""Typed arguments and overrides -> one flat mapping of what the caller said, or an error that names both sides."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from mask2former_mcp.bundle import Bundle
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.planning import contract
from mask2former_mcp.planning.merge import normalise, same, show
from mask2former_mcp.planning.request import ActionRequest
from mask2former_mcp.planning.rules import Rules

# Arguments that other steps read: they are no spec values of their own.
_ELSEWHERE = frozenset(
    {
        *ActionRequest.model_fields, "train_dataset", "eval_dataset", "inference_dataset", "preset", "parent_job_id",
        "checkpoint", "automl_policy", "request", "automl", "trt_engine", "model_path", "onnx_file",
    }
) - {"num_gpus", "num_nodes"}  # fmt: skip
_FILES = ("checkpoint", "model_path", "onnx_file", "trt_engine")


def said(request: ActionRequest, action: str, bundle: Bundle, rules: Rules, keys: Collection[str]) -> dict[str, Any]:
    """Flat spec values of every typed argument and override. InvalidRequest when two of them disagree."""
    _refuse_control_characters(request)
    overrides = normalise(request.overrides or {}, keys, bundle.shorthand, partial(contract.owners, bundle))
    _refuse_reserved(overrides, bundle.spec_params(action))
    typed: dict[str, tuple[str, Any]] = {}
    special = rules.arguments(request)
    for name, value in request:
        if name in special:
            typed.update({key: (name, inner) for key, inner in special[name].items()})
        elif value is not None and name not in _ELSEWHERE:
            key = _key_of(name, value, action, bundle, keys)
            if key is not None:
                typed[key] = (name, value)
    for key, (name, value) in typed.items():
        if key in overrides and not same(overrides[key], value):
            raise InvalidRequest(
                f"{name}={show(getattr(request, name))} and overrides {key}={show(overrides[key])} disagree",
                fix=f"Keep one: leave out {name}, or take {key} out of overrides.",
            )
    return {**overrides, **{key: value for key, (_, value) in typed.items()}}


def _key_of(name: str, value: object, action: str, bundle: Bundle, keys: Collection[str]) -> str | None:
    """The spec key of an argument: the action's own, then the bundle's short name, then the action's TensorRT block."""
    for key in (f"{action}.{name}", bundle.shorthand.get(name), f"{action}.tensorrt.{name}"):
        if key is not None and key in keys:
            return key
    if name in ("num_gpus", "num_nodes"):
        if value == 1:
            return None
        raise InvalidRequest(f"{name}={value}: {action} runs on one GPU of one node", fix=f"Leave {name} out.")
    raise InvalidRequest(
        f"{name}={show(value)}: the bundle {bundle.name} has no spec key for this argument of {action}",
        fix="Set the key of this model's spec in overrides; search_spec finds it.",
    )


def _refuse_reserved(overrides: Mapping[str, Any], params: Mapping[str, str | Mapping[str, str]]) -> None:
    """Keys whose values are the server's: results folders, the job to resume, the encryption key, output paths."""
    for key, value in overrides.items():
        function = params.get(key)
        if key == "results_dir" or key.endswith(".results_dir") or function == "output_dir":
            raise InvalidRequest(
                f"overrides {key}={show(value)}: results folders are the server's",
                fix="Use the argument results_dir (a new or empty folder), or leave it out for the job's own folder.",
            )
        if key == "train.resume_training_checkpoint_path" or function == "resume_model":
            raise InvalidRequest(
                f"overrides {key}={show(value)}: a job is resumed in its own folder, in no other way",
                fix="Use resume_job to continue an interrupted job; to fine-tune its weights in a new job, pass "
                "checkpoint (or parent_job_id) to train.",
            )
        if key == "encryption_key" or function == "key":
            raise InvalidRequest(
                f"overrides {key}: the key is a secret and is never taken from a request",
                fix="Set M2F_ENCRYPTION_KEY in the server's environment.",
            )
        if function in ("create_onnx_file", "create_engine_file") and (
            not isinstance(value, str) or not value or "/" in value or "\\" in value or value.startswith(".")
        ):
            raise InvalidRequest(
                f"overrides {key}={show(value)} is not a plain file name: outputs go into the job's results folder",
                fix="Give a plain file name (no folders), or leave it out.",
            )


def output_name(overrides: Mapping[str, Any], key: str, default: str) -> str:
    """`default` with its file name replaced by the one that the caller chose, if any."""
    name = overrides.get(key)
    if name is None:
        return default
    folder, _, original = default.rpartition("/")
    suffix = "." + original.rsplit(".", 1)[-1]
    if not name.endswith(suffix):
        raise InvalidRequest(
            f"overrides {key}={show(name)} does not end in {suffix}", fix=f"Name it like model{suffix}."
        )
    return f"{folder}/{name}"


def _refuse_control_characters(request: ActionRequest) -> None:
    for name, value in request:
        if not isinstance(value, str) or name == "request":
            continue
        if any(ord(character) < 32 or ord(character) == 127 for character in value):
            raise InvalidRequest(f"{name}={show(value)} holds control characters", fix=f"Remove them from {name}.")
        if not value.strip() and name != "pretrained_weights":
            raise InvalidRequest(f"{name}={value!r} is empty", fix=f"Give {name} a value or leave it out.")
        if "${" in value:
            raise InvalidRequest(f"{name}={show(value)} looks like interpolation", fix="Write the value itself.")


def model_files(request: ActionRequest, overrides: Mapping[str, Any], action: str) -> dict[str, tuple[str, str]]:
    """spec key -> (argument, text) for the model files that the caller names, as arguments or as overrides."""
    keys = {
        "checkpoint": "train.pretrained_model_path" if action == "train" else f"{action}.checkpoint",
        "model_path": "quantize.model_path",
        "onnx_file": "gen_trt_engine.onnx_file",
        "trt_engine": f"{action}.trt_engine",
    }
    found: dict[str, tuple[str, str]] = {}
    for name in _FILES:
        if name not in type(request).model_fields:
            continue
        typed, key = getattr(request, name), keys[name]
        override = overrides.get(key)
        if override in (None, ""):
            if typed is not None:
                found[key] = (name, typed)
            continue
        if not isinstance(override, str):
            raise InvalidRequest(f"overrides {key}={show(override)} is not a path", fix=f"Use the argument {name}.")
        if typed is not None and typed != override:
            raise InvalidRequest(
                f"{name}={typed!r} and overrides {key}={override!r} disagree",
                fix=f"Keep one: leave out {name}, or take {key} out of overrides.",
            )
        found[key] = (name, override) if typed is not None else (f"overrides {key}", override)
    return found
