"""A trained network, opened for use: a checkpoint's weights in the spec's network, or an exported graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mask2former_mcp.engine import checkpoint, device, initial_weights, modelopt_ptq, scoring, weight_only
from mask2former_mcp.engine import classes as class_table
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.graph import Graph, GraphInterpreter, mode_of
from mask2former_mcp.engine.model import network
from mask2former_mcp.engine.onnx_graph import OnnxRunner
from mask2former_mcp.engine.tensorrt_graph import TensorRtRunner
from mask2former_mcp.formats.label_map import Label
from mask2former_mcp.spec.experiment import Experiment


@dataclass(frozen=True)
class Trained:
    """model: in eval mode, on the CPU. classes: as the checkpoint says, None where it was written by someone else."""

    model: network.Mask2Former
    classes: Classes | None
    epoch: int | None
    quantized: str | None = None  # the backend of `quantize` that wrote it


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
        self, spec: Experiment, classes: Classes, *, min_score: float = 0.0
    ) -> "scoring.Interpreter | GraphInterpreter":
        """What turns its output into an outcome. min_score: of instances that are wanted at all."""
        kind = GraphInterpreter if isinstance(self.model, Graph) else scoring.Interpreter
        return kind(spec.model, classes, min_score)


def open_model(spec: Experiment, path: str, *, trt_engine: str = "", gpu: int | None = 0) -> Usable:
    """A checkpoint, an ONNX file (run on `gpu`: see OnnxRunner), or a TensorRT engine. Raises ValueError as
    `open_checkpoint`, and for a graph of another mode than the spec's."""
    if not trt_engine and not path.endswith(".onnx"):
        known = open_checkpoint(spec, path)
        content = _content(Path(path))
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


def open_checkpoint(spec: Experiment, path: str) -> Trained:
    """Raises ValueError, naming the spec value to change, when the weights do not fit the network of the spec."""
    if path.endswith(".onnx"):
        raise ValueError(f"{path} is an ONNX file already: this action starts from a checkpoint (.pth)")
    content = _content(Path(path))
    rng = torch.get_rng_state()
    model = network.build(spec)  # its fresh weights are overwritten
    torch.set_rng_state(rng)
    initial_weights.load_weights(model, Path(path))
    hyper_parameters = content.get("hyper_parameters")
    entries = hyper_parameters.get("classes") if isinstance(hyper_parameters, dict) else None
    epoch = content.get("epoch")
    return Trained(
        model.eval(),
        class_table.from_plain(entries) if entries else None,
        epoch if isinstance(epoch, int) else None,
        checkpoint.quantization(content).get("backend"),
    )


def _content(path: Path) -> Mapping[str, Any]:
    """What a checkpoint says beside its weights; nothing in what another program wrote."""
    return {} if path.is_dir() or path.suffix == ".pkl" else checkpoint.load(path)


def _quantized(model: nn.Module, content: Mapping[str, Any]) -> nn.Module:
    """The network as `quantize` left it; any other as it is."""
    backend = checkpoint.quantization(content).get("backend")
    if backend == modelopt_ptq.BACKEND:
        return modelopt_ptq.restore(model, content)
    if backend == weight_only.PACKAGE:
        weight_only.restore(model, content)
    return model


def classes_from_labels(labels: Sequence[Label], spec: Experiment) -> Classes:
    """The classes of a checkpoint that does not name them: the label map's, in its order or by id."""
    return class_table.arrange(
        class_table.as_categories(labels),
        labels,
        num_classes=spec.model.sem_seg_head.num_classes,
        contiguous_id=spec.dataset.contiguous_id,
        where=spec.dataset.label_map or "dataset.label_map",
    )
