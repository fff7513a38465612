"""The whole spec, typed, and the one door through which a mapping becomes it."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.actions import Evaluate, Export, GenTrtEngine, Inference, Quantize
from mask2former_mcp.spec.dataset import Dataset
from mask2former_mcp.spec.field import MISSING, Section, section, spec_field
from mask2former_mcp.spec.model import Model
from mask2former_mcp.spec.train import Train
from mask2former_mcp.spec.wandb import Wandb

ACTIONS = ("train", "evaluate", "export", "inference", "quantize", "gen_trt_engine")


class Experiment(Section):
    """Every block of every action. A spec file usually holds the shared blocks and one action's own."""

    model_name: str = spec_field("", "A label for the model; changes nothing.")
    encryption_key: str = spec_field(
        "",
        "Key for encrypted model files; a secret that the server fills in from its own environment. Never needed here.",
    )
    results_dir: str = spec_field("", "Folder that holds one folder of results per action. The server sets it.")
    wandb: Wandb = section(Wandb, "Weights & Biases.")
    model: Model = section(Model, "Network, losses and read-out.")
    dataset: Dataset = section(Dataset, "Data, loading and augmentation.")
    train: Train = section(Train, "Training.")
    evaluate: Evaluate = section(Evaluate, "Evaluation.")
    export: Export = section(Export, "Export to ONNX.")
    inference: Inference = section(Inference, "Inference.")
    gen_trt_engine: GenTrtEngine = section(GenTrtEngine, "TensorRT engine.")
    quantize: Quantize = section(Quantize, "Quantization.")


def load(action: str, mapping: Mapping[str, Any]) -> Experiment:
    """A nested mapping (a YAML file read) as a typed spec; what it does not say gets the default.

    Blocks of other actions may stand in it. ValueError, one line per problem: dotted key, value, rule, and the nearest
    key for an unknown one; also for an unknown action and for a key of this action that must be given and is not.
    """
    if action not in ACTIONS:
        raise ValueError(f"unknown action '{action}': one of {', '.join(ACTIONS)}")
    try:
        experiment = Experiment.model_validate(_mutable(mapping))
    except ValidationError as invalid:
        raise ValueError("\n".join(_describe(error) for error in invalid.errors(include_url=False))) from invalid
    missing = list(_missing(action, experiment))
    if missing:
        raise ValueError("\n".join(f"{key}: must be given for {action}" for key in missing))
    return experiment


def leaves(model: type[BaseModel] = Experiment) -> Iterator[str]:
    """Dotted keys of all leaves, in the order they are declared."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from (f"{name}.{leaf}" for leaf in leaves(inner))
        else:
            yield name


def _mutable(value: Any) -> Any:
    """Mappings as plain dicts (strict validation wants dicts); everything else as it is."""
    return {key: _mutable(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _missing(action: str, experiment: Experiment) -> Iterator[str]:
    block = getattr(experiment, action)
    # An engine file stands in for the checkpoint where there is one.
    replaced = {"checkpoint"} if action in ("evaluate", "inference") and block.trt_engine else set()
    for name in type(block).model_fields:
        if getattr(block, name) == MISSING and name not in replaced:
            yield f"{action}.{name}"
    if action == "quantize" and not experiment.quantize.model_path:
        yield "quantize.model_path"


def _describe(error: ErrorDetails) -> str:
    key = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in error["loc"]).replace(".[", "[")
    if error["type"] == "extra_forbidden":
        near = dotted.nearest(key, leaves())
        return f"{key}: no such key" + (f"; did you mean {' or '.join(near)}?" if near else "")
    rule = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = "***" if key == "encryption_key" else repr(error["input"])  # a secret, whatever its type
    return f"{key} = {value}: {rule}"
