"""Quantization after training: a smaller model that evaluate, inference and export take, and what it costs.

    torchao            weight_only_ptq: 8-bit weights of linear layers, one scale per row -> quantized_model_torchao.pth
    modelopt.pytorch   static_ptq: 8-bit weights and activations, or 4-bit weights (awq_*), simulated
                       -> quantized_model_modelopt.pytorch.pth
    modelopt.onnx      static_ptq of an exported graph, as Q/DQ nodes (or 4-bit weights: awq_*, rtn_dq)
                       -> quantized_model.onnx; without the package, onnxruntime's static quantization in 8 bits

`report.json` compares before and after: bytes, milliseconds an image, and the metrics on dataset.val where it is given.
"""

import json
import math
from pathlib import Path
from typing import Any

from mask2former_mcp.engine import calibration, comparison, device, modelopt_ptq, onnx_ptq, trained, usable, weight_only
from mask2former_mcp.engine.comparison import Measured
from mask2former_mcp.engine.status import StatusLog, finite
from mask2former_mcp.spec.experiment import Experiment

MODES = {"torchao": "weight_only_ptq", "modelopt.pytorch": "static_ptq", "modelopt.onnx": "static_ptq"}


def run(spec: Experiment, results_dir: Path) -> None:
    """Writes the quantized model and `report.json`. Raises ValueError for a combination that does not exist,
    ModuleNotFoundError when the backend's package is not installed."""
    status = StatusLog(results_dir)
    settings = spec.quantize
    if settings.mode != MODES[settings.backend]:
        raise ValueError(
            f"quantize.mode = {settings.mode} does not exist for quantize.backend = {settings.backend}:"
            f" set quantize.mode={MODES[settings.backend]}"
        )
    if settings.model_path.endswith(".onnx") != (settings.backend == "modelopt.onnx"):
        raise ValueError(
            f"quantize.model_path = {settings.model_path} does not suit quantize.backend = {settings.backend}:"
            " modelopt.onnx takes an ONNX file, the others a checkpoint (.pth)"
        )
    if settings.layers and settings.backend != "torchao":
        raise ValueError(
            f"quantize.layers is read by quantize.backend = torchao only, not by {settings.backend}: name what is to be"
            " left out in quantize.skip_names, or give the library's own settings in quantize.backend_kwargs"
        )
    device.use_threads()
    gpu = device.named(settings.device).index  # None on the CPU
    source = Path(settings.model_path)
    status.running("Quantizing.")
    if settings.backend == "modelopt.onnx":
        target, how = onnx_ptq.quantize(spec, source, results_dir / "quantized_model.onnx")
    elif settings.backend == "torchao":
        target, how = weight_only.quantize(
            spec, trained.open_checkpoint(spec, str(source)), results_dir / "quantized_model_torchao.pth"
        )
    else:
        modelopt_ptq.require()
        scenes = list(calibration.scenes(spec, None))
        known = trained.open_checkpoint(spec, str(source))
        target, how = modelopt_ptq.quantize(spec, known, scenes, results_dir / "quantized_model_modelopt.pytorch.pth")
    status.running(f"Quantized: {how}. Comparing it with the original.")
    before = comparison.measure(spec, usable.open_model(spec, str(source), gpu=gpu), source, status)
    after = comparison.measure(spec, usable.open_model(spec, str(target), gpu=gpu), target, status)
    report = _report(spec, target, how, before, after)
    (results_dir / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    status.running("Test metrics generated.", _kpi(before, after))
    print(summary(before, after), flush=True)


def summary(before: Measured, after: Measured) -> str:
    """One line for people."""
    parts = [
        f"{before.weight_bytes / 1e6:.2f} MB -> {after.weight_bytes / 1e6:.2f} MB",
        f"{before.latency_ms:.1f} ms -> {after.latency_ms:.1f} ms an image",
        *(f"{name} {before.metrics[name]:.4f} -> {after.metrics[name]:.4f}" for name in _shared(before, after)),
    ]
    return ", ".join(parts)


def _report(spec: Experiment, target: Path, how: str, before: Measured, after: Measured) -> dict[str, Any]:
    return {
        "backend": spec.quantize.backend,
        "mode": spec.quantize.mode,
        "algorithm": spec.quantize.algorithm,
        "how": how,
        "model": str(target),
        "before": _plain(before),
        "after": _plain(after),
        "drop": finite({name: before.metrics[name] - after.metrics[name] for name in _shared(before, after)}),
        "why_no_metrics": before.why_no_metrics,
    }


def _plain(measured: Measured) -> dict[str, Any]:
    return {
        "weight_bytes": measured.weight_bytes,
        "latency_ms": round(measured.latency_ms, 3),
        "input": list(measured.size),
        "metrics": finite(measured.metrics),
    }


def _kpi(before: Measured, after: Measured) -> dict[str, float]:
    """The metrics of the quantized model by their own names; the rest by names that say what they are."""
    drop = {f"{name}_drop": before.metrics[name] - after.metrics[name] for name in _shared(before, after)}
    facts = {
        "size_mb_before": before.weight_bytes / 1e6,
        "size_mb_after": after.weight_bytes / 1e6,
        "latency_ms_before": before.latency_ms,
        "latency_ms_after": after.latency_ms,
    }
    return {**after.metrics, **drop, **facts}


def _shared(before: Measured, after: Measured) -> list[str]:
    """Metrics of both, val_loss aside: higher is better for all of them."""
    return [
        name
        for name, value in before.metrics.items()
        if name in ("mIoU", "PQ", "AP") and name in after.metrics and math.isfinite(value)
    ]
