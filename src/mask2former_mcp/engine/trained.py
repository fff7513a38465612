"""A trained network: a checkpoint's weights in the network of the spec."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mask2former_mcp.engine import checkpoint, initial_weights
from mask2former_mcp.engine import classes as class_table
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.model import network
from mask2former_mcp.formats.label_map import Label
from mask2former_mcp.spec.experiment import Experiment


@dataclass(frozen=True)
class Trained:
    """model: in eval mode, on the CPU. classes: as the checkpoint says, None where it was written by someone else."""

    model: network.Mask2Former
    classes: Classes | None
    epoch: int | None
    quantized: str | None = None  # the backend of `quantize` that wrote it


def open_checkpoint(spec: Experiment, path: str) -> Trained:
    """Raises ValueError, naming the spec value to change, when the weights do not fit the network of the spec."""
    if path.endswith(".onnx"):
        raise ValueError(f"{path} is an ONNX file already: this action starts from a checkpoint (.pth)")
    content = read(Path(path))
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


def read(path: Path) -> Mapping[str, Any]:
    """What a checkpoint says of itself; nothing of what another program wrote."""
    return {} if path.is_dir() or path.suffix == ".pkl" else checkpoint.load(path)


def classes_from_labels(labels: Sequence[Label], spec: Experiment) -> Classes:
    """The classes of a checkpoint that does not name them: the label map's, in its order or by id."""
    return class_table.arrange(
        class_table.as_categories(labels),
        labels,
        num_classes=spec.model.sem_seg_head.num_classes,
        contiguous_id=spec.dataset.contiguous_id,
        where=spec.dataset.label_map or "dataset.label_map",
    )
