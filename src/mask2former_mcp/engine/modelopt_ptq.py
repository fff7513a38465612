"""Static quantization by NVIDIA's Model Optimizer, simulated in PyTorch: weights and activations in 8 bits, or weights
in 4 bits (awq_*).

The file keeps the weights in full and notes the ranges beside them: what it is for is to measure what fewer bits would
cost. To deploy it, quantize an export (backend modelopt.onnx).
"""

import copy
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mask2former_mcp.engine import checkpoint, device, module_names
from mask2former_mcp.engine.trained import Trained
from mask2former_mcp.spec.experiment import Experiment

BACKEND = "modelopt.pytorch"
_CONFIGS = {"max": "INT8_DEFAULT_CFG", "awq_lite": "INT4_AWQ_CFG", "awq_full": "INT4_AWQ_CFG"}
_WHAT = {"INT8_DEFAULT_CFG": "8-bit weights and activations", "INT4_AWQ_CFG": "4-bit weights"}
_DTYPE, _SLICE = "torch.dtype", "slice"


def quantize(spec: Experiment, known: Trained, scenes: Sequence[Tensor], target: Path) -> tuple[Path, str]:
    """Writes `target`; the second value says what was done. Raises ModuleNotFoundError without nvidia-modelopt."""
    require()
    settings = spec.quantize
    if settings.algorithm not in _CONFIGS:
        raise ValueError(f"quantize.algorithm = {settings.algorithm}: modelopt.pytorch has {', '.join(_CONFIGS)}")
    names = set(known.model.state_dict())
    library = importlib.import_module("modelopt.torch.quantization")
    config = copy.deepcopy(getattr(library, _CONFIGS[settings.algorithm]))
    if settings.algorithm != "max":
        config["algorithm"] = {"method": settings.algorithm}
    module_names.chosen(settings.skip_names, module_names.of(known.model), "quantize.skip_names")
    for pattern in settings.skip_names:
        _leave_out(config, f"{pattern}.*")  # the library's names are of quantizers, which lie below their modules
    config.update(settings.backend_kwargs)

    at = device.named(settings.device)

    @torch.inference_mode()
    def show(model: nn.Module) -> None:
        for scene in scenes:
            model(scene.to(at))

    model = library.quantize(known.model.to(at), config, show).cpu()
    state = model.state_dict()
    noted = importlib.import_module("modelopt.torch.opt").modelopt_state(model)
    checkpoint.save(
        target,
        model={name: value for name, value in state.items() if name in names},
        epoch=known.epoch or 0,
        global_step=0,
        hyper_parameters={
            "classes": known.classes.plain() if known.classes else None,
            "quantization": {
                "backend": BACKEND,
                "state": _written(noted),
                "ranges": {name: value for name, value in state.items() if name not in names},
            },
        },
        latest=False,
    )
    what = _WHAT[_CONFIGS[settings.algorithm]]
    return target, f"{what}, simulated ({BACKEND}, {settings.algorithm}), {len(scenes)} calibration images"


def restore(model: nn.Module, content: Mapping[str, Any]) -> nn.Module:
    """The network with its simulated arithmetic. Raises ModuleNotFoundError without nvidia-modelopt."""
    require()
    noted = checkpoint.quantization(content)
    weights = model.state_dict()
    optimizer = importlib.import_module("modelopt.torch.opt")
    restored: nn.Module = optimizer.restore_from_modelopt_state(model, _read(noted["state"]))
    restored.load_state_dict({**weights, **noted["ranges"]}, strict=False)
    return restored.eval()


def require() -> None:
    if importlib.util.find_spec("modelopt") is None:
        raise ModuleNotFoundError(
            f"quantize.backend = {BACKEND} needs the package nvidia-modelopt, which is not installed in the engine's"
            " Python: pip install nvidia-modelopt; or use quantize.backend=torchao with mode weight_only_ptq"
        )


def _leave_out(config: dict[str, Any], pattern: str) -> None:
    rules = config["quant_cfg"]
    if isinstance(rules, list):
        rules.append({"quantizer_name": pattern, "enable": False})
    else:  # before 0.40
        rules[pattern] = {"enable": False}


def _written(value: Any) -> Any:
    """Types of numbers and slices, which a checkpoint does not hold, by what they are made of."""
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, slice):
        return {_SLICE: [value.start, value.stop, value.step]}
    if isinstance(value, Mapping):
        return {key: _written(item) for key, item in value.items()}
    return type(value)(_written(item) for item in value) if type(value) in (list, tuple) else value


def _read(value: Any) -> Any:
    """The inverse of `_written`."""
    if isinstance(value, Mapping):
        if set(value) == {_DTYPE}:
            return getattr(torch, value[_DTYPE])
        return slice(*value[_SLICE]) if set(value) == {_SLICE} else {k: _read(v) for k, v in value.items()}
    return type(value)(_read(item) for item in value) if type(value) in (list, tuple) else value
