"""What `evaluate` and `inference` run: a trained network, as `quantize` left it, or an exported graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mask2former_mcp.engine import checkpoint, device, fast, modelopt_ptq, scoring, trained, weight_only
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.graph import Graph, GraphInterpreter, mode_of
from mask2former_mcp.engine.onnx_graph import OnnxRunner
from mask2former_mcp.engine.tensorrt_graph import TensorRtRunner
from mask2former_mcp.spec.experiment import Experiment


@dataclass(frozen=True)
class Usable:
    """What `evaluate` and `inference` run. size: the one image size (height, width) that it takes; None: any.
    weight_bytes: of the network's tensors as the file stores them; None for a graph, whose file has nothing else."""

    model: nn.Module
    num_classes: int
    classes: Classes | None
    size: tuple[int, int] | None = None
    weight_bytes: int | None = None

    def interpreter(
        self, spec: Experiment, classes: Classes, at: torch.device, *, min_score: float = 0.0
    ) -> scoring.Interpret:
        """What turns its output, which lies `at`, into outcomes. min_score: of instances that are wanted at all."""
        kind = GraphInterpreter if isinstance(self.model, Graph) else scoring.Interpreter
        return fast.interpreter(kind(spec.model, classes, min_score), at)


def open_model(spec: Experiment, path: str, *, trt_engine: str = "", gpu: int | None = 0) -> Usable:
    """A checkpoint, an ONNX file (run on `gpu`: see OnnxRunner), or a TensorRT engine. Raises ValueError as
    `trained.open_checkpoint`, and for a graph of another mode than the spec's."""
    if not trt_engine and not path.endswith(".onnx"):
        known = trained.open_checkpoint(spec, path)
        content = trained.read(Path(path))
        num_classes = known.model.num_classes
        model = _quantized(known.model, content)
        return Usable(model, num_classes, known.classes, weight_bytes=checkpoint.weight_bytes(content))
    device.use_threads()
    path = trt_engine or path
    runner = TensorRtRunner(Path(path)) if trt_engine else OnnxRunner(Path(path), gpu)
    mode = mode_of(runner.outputs, path)
    if mode != spec.model.mode:
        raise ValueError(
            f"{path} is a {mode} export, but model.mode = {spec.model.mode}: set model.mode={mode}, or export the"
            f" checkpoint with model.mode={spec.model.mode}"
        )
    num_classes = spec.model.sem_seg_head.num_classes
    if runner.classes is not None and len(runner.classes) != num_classes:
        raise ValueError(
            f"{path} has {len(runner.classes)} classes, but model.sem_seg_head.num_classes = {num_classes}:"
            f" set model.sem_seg_head.num_classes={len(runner.classes)}"
        )
    return Usable(Graph(runner, mode).eval(), num_classes, runner.classes, runner.size)


def _quantized(model: nn.Module, content: Mapping[str, Any]) -> nn.Module:
    """The network as `quantize` left it; any other as it is."""
    backend = checkpoint.quantization(content).get("backend")
    if backend == modelopt_ptq.BACKEND:
        return modelopt_ptq.restore(model, content)
    if backend == weight_only.PACKAGE:
        weight_only.restore(model, content)
    return model
