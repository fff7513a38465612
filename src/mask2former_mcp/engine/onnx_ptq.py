"""Static quantization of an exported graph: 8-bit Q/DQ nodes around its convolutions and matrix products."""

import importlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from mask2former_mcp.engine import calibration, onnx_graph
from mask2former_mcp.engine.onnx_graph import OnnxRunner
from mask2former_mcp.spec.experiment import Experiment

OPERATORS = ["Conv", "MatMul", "Gemm"]
_METHODS = {"max": quantization.CalibrationMethod.MinMax, "entropy": quantization.CalibrationMethod.Entropy}


def quantize(spec: Experiment, source: Path, target: Path) -> tuple[Path, str]:
    """Writes `target`; the second value says by which library. Raises ValueError for what only modelopt can do."""
    runner = OnnxRunner(source)
    batch = runner.batch[0]
    scenes = [np.repeat(image.numpy(), batch, axis=0) for image in calibration.scenes(spec, runner.size)]
    target.parent.mkdir(parents=True, exist_ok=True)
    if _has_modelopt():
        how = _by_modelopt(spec, source, target, scenes)
    else:
        how = _by_onnxruntime(spec, source, target, scenes, runner.input)
    if runner.classes is not None:
        onnx_graph.name_classes(target, runner.classes)
    return target, f"{how}, {len(scenes)} calibration images"


def _has_modelopt() -> bool:
    if importlib.util.find_spec("modelopt") is None:
        return False
    # Its ONNX half asks for more packages than the torch half: what is half installed does not count.
    return all(importlib.util.find_spec(name) is not None for name in ("onnx_graphsurgeon", "onnxconverter_common"))


def _by_modelopt(spec: Experiment, source: Path, target: Path, scenes: list[np.ndarray[Any, Any]]) -> str:
    library = importlib.import_module("modelopt.onnx.quantization")
    library.quantize(
        onnx_path=str(source),
        quantize_mode="int8",
        calibration_data=np.concatenate(scenes),
        calibration_method=spec.quantize.algorithm,
        nodes_to_exclude=list(spec.quantize.skip_names),
        output_path=str(target),
        **spec.quantize.backend_kwargs,
    )
    return f"8-bit Q/DQ graph (modelopt.onnx, {spec.quantize.algorithm})"


def _by_onnxruntime(
    spec: Experiment, source: Path, target: Path, scenes: list[np.ndarray[Any, Any]], input_name: str
) -> str:
    settings = spec.quantize
    if settings.algorithm not in _METHODS:
        raise ValueError(
            f"quantize.algorithm = {settings.algorithm} needs the package nvidia-modelopt[onnx], which is not"
            f" installed; onnxruntime's quantization has {' and '.join(_METHODS)}"
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        # Symbolic shapes are not needed at a fixed image size, and the optimiser would write other operators.
        shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True, skip_optimization=True)
        names = [node.name for node in onnx.load(str(prepared)).graph.node]
        excluded = [name for name in names if any(pattern in name for pattern in settings.skip_names)]
        quantization.quantize_static(
            str(prepared),
            str(target),
            _Reader({input_name: image} for image in scenes),
            quant_format=quantization.QuantFormat.QDQ,
            calibrate_method=_METHODS[settings.algorithm],
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=excluded,
            per_channel=True,
            **settings.backend_kwargs,
        )
    return f"8-bit Q/DQ graph (onnxruntime's static quantization, {settings.algorithm})"


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    def __init__(self, feeds: Iterator[dict[str, np.ndarray[Any, Any]]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self._feeds, None)
