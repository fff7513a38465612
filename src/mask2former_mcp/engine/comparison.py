"""What a model weighs, how long it takes and how well it sees: measured alike before and after quantization."""

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mask2former_mcp.engine import augment, data, device, evaluate, loader, measuring, scoring
from mask2former_mcp.engine.loader import Batch, Normalize
from mask2former_mcp.engine.progress import Progress
from mask2former_mcp.engine.status import StatusLog
from mask2former_mcp.engine.usable import Usable
from mask2former_mcp.spec.dataset import EvalSplit
from mask2former_mcp.spec.experiment import Experiment

_ANNOTATIONS = {"coco_panoptic": "panoptic_json", "coco": "instance_json", "ade": "annot_file"}
RUNS = 7  # timed, after one that is not


@dataclass(frozen=True)
class Measured:
    """weight_bytes: of the tensors that inference needs (of the file, for a graph), so that optimizer states do not
    count; latency_ms: median of one image of `size` (height, width), without reading it and without the read-out."""

    weight_bytes: int
    latency_ms: float
    size: tuple[int, int]
    metrics: dict[str, float] = field(default_factory=dict)
    why_no_metrics: str | None = None


def measure(spec: Experiment, known: Usable, file: Path, status: StatusLog) -> Measured:
    """Metrics are left out, with the reason, where dataset.val names no annotations."""
    at = device.named(spec.quantize.device)
    model = known.model if known.size else known.model.to(at)
    size = known.size or _size(spec)
    latency = _latency_ms(model, size, at)
    weight_bytes = known.weight_bytes or file.stat().st_size
    reason = _missing(spec.dataset.val)
    if reason is not None:
        return Measured(weight_bytes, latency, size, why_no_metrics=reason)
    annotated = data.open_split(spec.dataset.val, spec.dataset, num_classes=known.num_classes, classes=known.classes)
    progress = Progress(status, len(annotated.source), message=f"Measuring {file.name}", unit="image")

    def after_batch(batch: Batch, _: list[scoring.Outcome]) -> None:
        for _name in batch.names:
            progress.step("")

    metrics = measuring.score(
        model,
        evaluate.split_batches(spec, annotated, known.size),
        scoring.Scores(spec.model.mode, spec.dataset.val.type, annotated.classes),
        known.interpreter(spec, annotated.classes, at),
        normalize=Normalize(spec.dataset.pixel_mean, spec.dataset.pixel_std),
        criterion=None,
        device=at,
        after_batch=after_batch,
    )
    return Measured(weight_bytes, latency, size, metrics)


@torch.inference_mode()
def _latency_ms(model: torch.nn.Module, size: tuple[int, int], at: torch.device) -> float:
    image = torch.zeros(1, 3, *size, device=at)
    times = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        model(image)
        if at.type == "cuda":
            torch.cuda.synchronize(at)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])


def _size(spec: Experiment) -> tuple[int, int]:
    """The evaluation size of a 4:3 photograph, where the spec names none."""
    settings = spec.dataset.augmentation
    named = loader.pair(spec.dataset.val.target_size)
    return named or augment.shortest_edge((480, 640), settings.test_min_size, settings.test_max_size)


def _missing(split: EvalSplit) -> str | None:
    key = _ANNOTATIONS[split.type]
    path = str(getattr(split, key))
    if not path:
        return f"dataset.val.{key} is empty: there is no validation data to measure on"
    return None if Path(path).is_file() else f"dataset.val.{key} = {path}: there is no such file"
