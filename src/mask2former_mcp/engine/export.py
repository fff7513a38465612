"""Export: a checkpoint as an ONNX file of standard operators, checked in onnxruntime against the network.

Input `inputs` [N, 3, H, W], normalised pixels. Outputs, at the input's size, by TAO's names:

    semantic   pred_masks [N, C, H, W]      score of each class at each pixel
    instance   pred_masks [N, K, H, W]      0 or 1;  pred_scores [N, K];  pred_classes [N, K], 1..C
    panoptic   prob_masks [N, Q, H, W]      score times mask probability: the largest wins a pixel
               pred_masks [N, Q, H, W]      mask probability;  pred_scores [N, Q];  pred_classes [N, Q], 0 is no object

K is min(test_topk_per_image, queries x classes).
"""

import hashlib
import json
import logging
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former_mcp.engine import device, modelopt_ptq, onnx_graph, trained, transformers_folder
from mask2former_mcp.engine.graph import OUTPUTS
from mask2former_mcp.engine.model.network import Mask2Former
from mask2former_mcp.engine.status import StatusLog
from mask2former_mcp.spec.experiment import Experiment

LEAST_OPSET = 18  # what the exporter writes; a lower number is raised to it
TOLERANCE = 1e-3  # on values of 0..1; what two backends differ by in float32 is a hundredth of it
FLIPPED = 1e-3  # share of values that may be further apart: pixels at the threshold, ranks of equal scores
_REPLACE = "set export.overwrite=true to replace it"


class Exportable(nn.Module):
    """The network and the mode's read-out as one graph, batch first in every output."""

    def __init__(self, model: Mask2Former, mode: str, topk: int) -> None:
        super().__init__()
        self.model, self.mode, self.topk = model, mode, topk

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        prediction = self.model(inputs)
        probabilities = prediction.class_logits[-1].softmax(-1)
        logits = F.interpolate(prediction.mask_logits(), size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        if self.mode == "semantic":
            masks = logits.sigmoid()
            scores = torch.bmm(probabilities[..., 1:].transpose(1, 2), masks.flatten(2))
            return (scores.reshape(*scores.shape[:2], *masks.shape[2:]),)
        if self.mode == "instance":
            return self._instances(probabilities[..., 1:], logits)
        scores, classes = probabilities.max(-1)
        masks = logits.sigmoid()
        return scores[..., None, None] * masks, masks, scores, classes

    def _instances(self, probabilities: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
        num_classes = probabilities.shape[2]
        scores, place = probabilities.flatten(1).topk(self.topk, dim=1)
        query = place // num_classes
        index = query[..., None].expand(-1, -1, logits.shape[2] * logits.shape[3])
        chosen = logits.flatten(2).gather(1, index)
        inside = (chosen > 0).to(chosen.dtype)
        quality = (chosen.sigmoid() * inside).sum(2) / (inside.sum(2) + 1e-6)
        masks = inside.reshape(*inside.shape[:2], *logits.shape[2:])
        return masks, scores * quality, place % num_classes + 1


@dataclass(frozen=True)
class Difference:
    """Between onnxruntime and torch: the largest, and the share of values that differ by more than the tolerance."""

    largest: float
    share_beyond: float


def run(spec: Experiment, results_dir: Path) -> None:
    """Writes `export.onnx_file` and `report.json`. Raises FileExistsError for a file that is there already (unless
    `export.overwrite`), ValueError for a size or opset that cannot be, ArithmeticError when onnxruntime and torch
    disagree: what was there before is left as it was."""
    if spec.export.format == "transformers":
        write_transformers(spec, results_dir)
        return
    status = StatusLog(results_dir)
    settings = spec.export
    path = Path(settings.onnx_file)
    if path.exists() and not settings.overwrite:
        raise FileExistsError(f"export.onnx_file = {path} exists already: choose another name, or {_REPLACE}")
    if settings.input_channel != 3:
        raise ValueError(f"export.input_channel = {settings.input_channel}: the network reads 3 channels (RGB)")
    device.use_threads()
    known = _opened(spec, status)
    queries = spec.model.mask_former.num_object_queries
    topk = min(spec.model.test_topk_per_image, queries * known.model.num_classes)
    module = Exportable(known.model, spec.model.mode, topk).eval()
    opset = max(LEAST_OPSET, settings.opset_version)
    if opset != settings.opset_version:
        status.running(f"export.opset_version = {settings.opset_version} was raised to {opset}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_onnx(module, partial, settings.batch_size, (settings.input_height, settings.input_width), opset)
        if known.classes is not None:
            onnx_graph.name_classes(partial, known.classes)
        status.running("ONNX file written; checking it in onnxruntime.")
        if settings.verbose:
            print(onnx.printer.to_text(onnx.load(str(partial))))
        report = check(module, partial, settings.batch_size, (settings.input_height, settings.input_width))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    report = {
        "onnx_file": str(path),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "checkpoint": settings.checkpoint,
        "quantized_by": known.quantized,  # its weights, multiplied out: the graph is float32 in any case
        "mode": spec.model.mode,
        "opset": opset,
        "batch_size": settings.batch_size if settings.batch_size > 0 else "any",
        **report,
    }
    (results_dir / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    largest = report["max_difference"]
    status.running(f"ONNX file checked: largest difference to torch {largest:.2g}.", onnx_file=str(path))
    print(f"{path}: opset {opset}, largest difference to torch {largest:.2g}", flush=True)


def write_transformers(spec: Experiment, results_dir: Path) -> None:
    """Writes the folder `transformers` into `results_dir`, whole or not at all. Raises FileExistsError, ValueError."""
    folder = results_dir / "transformers"
    if folder.exists() and not spec.export.overwrite:
        raise FileExistsError(f"{folder} exists already: choose another export.results_dir, or {_REPLACE}")
    device.use_threads()
    status = StatusLog(results_dir)
    known = _opened(spec, status)
    partial, former = folder.with_name(".transformers.partial"), folder.with_name(".transformers.former")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        transformers_folder.write(partial, known.model, known.classes, spec)
        if folder.exists():  # no rename replaces a folder that holds something: the old one steps aside
            shutil.rmtree(former, ignore_errors=True)
            folder.replace(former)
        partial.replace(folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    status.running(f"Folder for transformers written: {folder}")


def _opened(spec: Experiment, status: StatusLog) -> trained.Trained:
    """export.checkpoint, its weights in float32. Raises ValueError for one whose arithmetic a graph cannot keep."""
    known = trained.open_checkpoint(spec, spec.export.checkpoint)
    if known.quantized == modelopt_ptq.BACKEND:
        raise ValueError(
            f"export.checkpoint = {spec.export.checkpoint} simulates quantized arithmetic, which an export would lose:"
            " export the original, and quantize that file with quantize.backend=modelopt.onnx"
        )
    if known.quantized is not None:
        status.running(f"The 8-bit weights of {known.quantized} are multiplied out: the export is full float32 again.")
    return known


def write_onnx(module: Exportable, path: Path, batch_size: int, size: tuple[int, int], opset: int) -> None:
    """One file, weights inside. batch_size below 1: any."""
    dynamic = batch_size < 1
    # Exporters take a size of 1 for a constant: two examples stand for "any".
    example = torch.zeros(2 if dynamic else batch_size, 3, *size)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells of every constant that it does not fold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter warns of its own future
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=["inputs"],
            output_names=list(OUTPUTS[module.mode]),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if dynamic else None,
            verbose=False,
        )


def check(module: Exportable, path: Path, batch_size: int, size: tuple[int, int]) -> dict[str, Any]:
    """Runs the file beside the network on seeded images. Raises ArithmeticError when they disagree."""
    graph = onnx.load(str(path))
    foreign = sorted({node.op_type for node in graph.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise ArithmeticError(f"the graph holds operators that are not standard ONNX: {', '.join(foreign)}")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst: dict[str, Difference] = {}
    batches = (1, 2) if batch_size < 1 else (batch_size,)
    for batch in batches:
        inputs = _scene(batch, size)
        with torch.inference_mode():
            expected = [tensor.numpy() for tensor in module(inputs)]
        found = session.run(None, {"inputs": inputs.numpy()})
        for name, actual, wanted in zip(OUTPUTS[module.mode], found, expected, strict=True):
            difference = _difference(name, np.asarray(actual), wanted)
            worst[name] = max(worst.get(name, difference), difference, key=lambda d: (d.share_beyond, d.largest))
    for name, difference in worst.items():
        if difference.share_beyond > FLIPPED:
            raise ArithmeticError(
                f"onnxruntime and torch disagree on {name}: {difference.share_beyond:.2%} of the values by more than"
                f" {TOLERANCE}, the largest by {difference.largest:.3g}"
            )
    smooth = [d.largest for name, d in worst.items() if _continuous(module.mode, name)]
    return {
        "inputs": [{"name": i.name, "shape": i.shape} for i in session.get_inputs()],
        "outputs": [{"name": o.name, "shape": o.shape} for o in session.get_outputs()],
        "checked_batch_sizes": list(batches),
        "max_difference": max(smooth),
        "differences": {name: asdict(difference) for name, difference in worst.items()},
        "operators": sorted({node.op_type for node in graph.graph.node}),
        "nodes": len(graph.graph.node),
    }


def _difference(name: str, found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> Difference:
    if found.shape != expected.shape:
        raise ArithmeticError(f"onnxruntime gives {name} the shape {found.shape}, torch {expected.shape}")
    for who, values in (("onnxruntime", found), ("torch", expected)):
        if wrong := int((~np.isfinite(values)).sum()):  # every output is made of probabilities
            raise ArithmeticError(f"{who} gives {name} {wrong} of {values.size} values that are NaN or infinite")
    apart = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return Difference(float(apart.max(initial=0.0)), float((apart > TOLERANCE).mean()) if apart.size else 0.0)


def _continuous(mode: str, name: str) -> bool:
    """Whether rounding moves an output a little, rather than flipping it."""
    return not (name == "pred_classes" or (mode == "instance" and name == "pred_masks"))


def _scene(batch: int, size: tuple[int, int]) -> Tensor:
    """Smooth seeded images: more like photographs, for the network, than noise is."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 3, 8, 8, generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
