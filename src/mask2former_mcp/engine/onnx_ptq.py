"""Static quantization of an exported graph: its convolutions and matrix products in 8 bits, as Q/DQ nodes around them,
or, by NVIDIA's package only, its weights in 4 bits."""

import importlib
import importlib.util
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from mask2former_mcp.engine import calibration, device, module_names, onnx_graph
from mask2former_mcp.engine.onnx_graph import OnnxRunner
from mask2former_mcp.spec.actions import Quantize
from mask2former_mcp.spec.experiment import Experiment

OPERATORS = ["Conv", "MatMul", "Gemm"]
_METHODS = {"max": quantization.CalibrationMethod.MinMax, "entropy": quantization.CalibrationMethod.Entropy}
_MODES = {**dict.fromkeys(_METHODS, "int8"), **dict.fromkeys(("awq_clip", "awq_lite", "awq_full", "rtn_dq"), "int4")}
_WHAT = {"int8": "8-bit Q/DQ graph", "int4": "4-bit weights"}


def quantize(spec: Experiment, source: Path, target: Path) -> tuple[Path, str]:
    """Writes `target`; the second value says by which library. Raises ValueError for what only modelopt can do, and for
    a pattern of `skip_names` that fits nothing."""
    settings = spec.quantize
    if settings.algorithm not in _MODES:
        raise ValueError(f"quantize.algorithm = {settings.algorithm}: modelopt.onnx has {', '.join(_MODES)}")
    runner = OnnxRunner(source, device.named(settings.device).index)
    nodes = onnx_graph.nodes(onnx.load(str(source), load_external_data=False))
    excluded = module_names.chosen(settings.skip_names, nodes, "quantize.skip_names")
    scenes = [np.repeat(image.numpy(), runner.batch[0], axis=0) for image in calibration.scenes(spec, runner.size)]
    target.parent.mkdir(parents=True, exist_ok=True)
    if _has_modelopt():
        how = _by_modelopt(settings, source, target, scenes, excluded)
    else:
        how = _by_onnxruntime(settings, source, target, ({runner.input: scene} for scene in scenes), excluded)
    if runner.classes is not None:
        onnx_graph.name_classes(target, runner.classes)
    return target, f"{how}, {len(scenes)} calibration images"


def _has_modelopt() -> bool:
    # Its ONNX half asks for more packages than the torch half: what is half installed does not count.
    needed = ("modelopt", "onnx_graphsurgeon", "onnxslim", "lief")
    return all(importlib.util.find_spec(name) is not None for name in needed)


def _by_modelopt(
    settings: Quantize, source: Path, target: Path, scenes: list[np.ndarray[Any, Any]], excluded: Collection[str]
) -> str:
    library = importlib.import_module("modelopt.onnx.quantization")
    at, mode = device.named(settings.device), _MODES[settings.algorithm]
    asked = {
        "onnx_path": str(source),
        "quantize_mode": mode,
        "calibration_data": np.concatenate(scenes),
        "calibration_method": settings.algorithm,
        "calibration_eps": ["cpu"] if at.type == "cpu" else [f"cuda:{at.index}", "cpu"],
        "op_types_to_quantize": OPERATORS,  # of its own choice it also takes sums, and fails where one adds to a Split
        "nodes_to_exclude": [f"{re.escape(name)}$" for name in sorted(excluded)],  # it reads regular expressions
        "high_precision_dtype": "fp32",  # left alone it turns everything else into halves
        "dq_only": True,  # weights are stored in 8 bits, not rounded each time
        "output_path": str(target),
        **settings.backend_kwargs,
    }
    library.quantize(**asked)
    return f"{_WHAT[mode]} (modelopt.onnx, {settings.algorithm})"


def _by_onnxruntime(
    settings: Quantize,
    source: Path,
    target: Path,
    feeds: Iterator[dict[str, np.ndarray[Any, Any]]],
    excluded: Collection[str],
) -> str:
    if settings.algorithm not in _METHODS:
        raise ValueError(
            f"quantize.algorithm = {settings.algorithm} needs the package nvidia-modelopt[onnx], which is not"
            f" installed; onnxruntime's quantization has {' and '.join(_METHODS)}"
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        # Symbolic shapes are not needed at a fixed image size, and the optimiser would write other operators.
        shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True, skip_optimization=True)
        quantization.quantize_static(
            str(prepared),
            str(target),
            _Reader(feeds),
            quant_format=quantization.QuantFormat.QDQ,
            calibrate_method=_METHODS[settings.algorithm],
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=sorted(excluded),
            per_channel=True,
            **settings.backend_kwargs,
        )
    return f"8-bit Q/DQ graph (onnxruntime's static quantization, {settings.algorithm})"


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    def __init__(self, feeds: Iterator[dict[str, np.ndarray[Any, Any]]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self._feeds, None)
