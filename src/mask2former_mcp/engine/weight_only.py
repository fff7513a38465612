"""torchao's weight-only quantization: linear layers keep 8-bit weights with one scale per row.

The file holds plain tensors (int8 weights, scales), so that it opens anywhere, also without torchao: the weights are
then multiplied out. Evaluation and inference run torchao's own tensors where the package is there.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mask2former_mcp.engine import checkpoint, module_names
from mask2former_mcp.engine.trained import Trained
from mask2former_mcp.spec.actions import Quantize
from mask2former_mcp.spec.experiment import Experiment

PACKAGE = "torchao"
INT8 = ("int8", "torch.int8")


def quantize(spec: Experiment, known: Trained, target: Path) -> tuple[Path, str]:
    """Writes `target`; the second value says what was done. Raises ModuleNotFoundError without torchao."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ModuleNotFoundError(
            "quantize.backend = torchao needs the package torchao, which is not installed in the engine's Python:"
            " pip install torchao (it is part of the extra `engine`)"
        )
    settings = spec.quantize
    if settings.algorithm != "minmax":
        raise ValueError(f"quantize.algorithm = {settings.algorithm}: torchao's is minmax. Set it to minmax.")
    chosen = _chosen(known.model, settings)
    if not chosen:
        raise ValueError("quantize.layers and quantize.skip_names leave no linear layer to quantize: loosen them")
    library = importlib.import_module("torchao.quantization")
    wanted = set(chosen)
    library.quantize_(
        known.model,
        library.Int8WeightOnlyConfig(**settings.backend_kwargs),
        filter_fn=lambda _, name: name in wanted,
    )
    state: dict[str, Tensor] = dict(known.model.state_dict())
    scales: dict[str, Tensor] = {}
    for name in (f"{module}.weight" for module in chosen):
        weight: Any = state[name]
        state[name], scales[name] = weight.qdata.clone(), weight.scale.clone()
    checkpoint.save(
        target,
        model=state,
        epoch=known.epoch or 0,
        global_step=0,
        hyper_parameters={
            "classes": known.classes.plain() if known.classes else None,
            "quantization": {"backend": PACKAGE, "scales": scales},
        },
        latest=False,
    )
    return target, f"8-bit weights in {len(chosen)} linear layers (torchao, one scale per row)"


def restore(model: nn.Module, content: Mapping[str, Any]) -> None:
    """Puts torchao's tensors in place of the multiplied-out weights; without torchao these stay."""
    if importlib.util.find_spec(PACKAGE) is None:
        return
    library = importlib.import_module("torchao.quantization")
    for name, scale in checkpoint.scales(content).items():
        stored = content["state_dict"][checkpoint.PREFIX + name]
        module = model.get_submodule(name.removesuffix(".weight"))
        weight = library.Int8Tensor(stored, scale, block_size=[1, stored.shape[1]], dtype=scale.dtype)
        module.weight = nn.Parameter(weight, requires_grad=False)


def _chosen(model: nn.Module, settings: Quantize) -> list[str]:
    """Linear layers that `layers` names (all, where it is empty) and `skip_names` does not."""
    names = module_names.of(model)
    patterns = [_pattern(layer) for layer in settings.layers] or ["*"]
    wanted = module_names.chosen(patterns, names, "quantize.layers")
    wanted -= module_names.chosen(settings.skip_names, names, "quantize.skip_names")
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name in wanted]


def _pattern(layer: Mapping[str, Any]) -> str:
    """The module name of an entry of quantize.layers. Raises ValueError where it has none, or another type."""
    pattern = layer.get("module_name") or layer.get("name")
    weights = layer.get("weights")
    dtype = weights.get("dtype") if isinstance(weights, Mapping) else layer.get("dtype")
    if not isinstance(pattern, str):
        raise ValueError(f"quantize.layers: {dict(layer)} has no module_name (a name or a pattern such as backbone.*)")  # noqa: TRY004 - a spec's content
    if dtype is not None and dtype not in INT8:
        raise ValueError(f"quantize.layers: dtype {dtype} of {pattern} is not built: weights become int8")
    return pattern
