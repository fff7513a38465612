"""Evaluation: a checkpoint measured on dataset.val, in numbers and in pictures."""

import json
from pathlib import Path

from torch.utils.data import DataLoader

from mask2former_mcp.engine import (
    artifacts,
    criterion,
    data,
    device,
    fast,
    group,
    loader,
    measuring,
    scoring,
    targets,
    usable,
)
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.group import Group
from mask2former_mcp.engine.loader import Batch, Normalize
from mask2former_mcp.engine.metrics import PerClass
from mask2former_mcp.engine.progress import Progress
from mask2former_mcp.engine.status import StatusLog, finite
from mask2former_mcp.formats import images
from mask2former_mcp.spec.experiment import Experiment

COUNTS = ("TP", "FP", "FN")  # of segments; everything else is a rate
PANELS = 8  # pictures, evenly spread over the split


def run(spec: Experiment, results_dir: Path) -> None:
    """Writes `metrics.json` (overall, per class), `panels/*.png` and the KPI line.

    All metrics are taken at the size of the original images (TAO takes mIoU at a quarter of the resized one).
    Raises ValueError, FileNotFoundError.
    """
    status = StatusLog(results_dir)
    known = usable.open_model(spec, spec.evaluate.checkpoint, trt_engine=spec.evaluate.trt_engine)
    annotated = data.open_split(spec.dataset.val, spec.dataset, num_classes=known.num_classes, classes=known.classes)
    classes = annotated.classes
    fabric = device.measuring(spec.evaluate, spec.train.precision)
    fabric.launch()
    together = group.of(fabric)
    model = known.model
    if not known.size:
        fast.accelerate(model, fabric.device)
        model = fabric.setup_module(model)
    batches = split_batches(spec, annotated, known.size, together)
    loss = fast.criterion(criterion.build(spec), fabric.device, mask_dim=spec.model.sem_seg_head.mask_dim)
    scores = scoring.Scores(spec.model.mode, spec.dataset.val.type, classes)
    progress = Progress(status, len(annotated.source), message="Evaluation in progress", unit="image")
    pictured = set(range(0, len(annotated.source), max(1, len(annotated.source) // PANELS))[:PANELS])
    folder = results_dir / "panels"
    folder.mkdir(parents=True, exist_ok=True)

    def after_batch(batch: Batch, outcomes: list[scoring.Outcome]) -> None:
        for index, name, truth, outcome in zip(batch.indices, batch.names, batch.truths, outcomes, strict=True):
            if index in pictured and truth is not None:
                scene = (images.read(Path(name)), truth, outcome)
                threshold = spec.model.object_mask_threshold
                panel = artifacts.comparison([scene], classes, mode=spec.model.mode, threshold=threshold)
                artifacts.save(folder / f"{index:05d}_{Path(name).stem}.png", panel)
            progress.step("", count=together.ranks)  # the other processes are about as far

    measured = measuring.score(
        model,
        batches,
        scores,
        known.interpreter(spec, classes, fabric.device),
        normalize=Normalize(spec.dataset.pixel_mean, spec.dataset.pixel_std),
        criterion=None if known.size else loss,  # a graph has no layers to take a loss on
        device=fabric.device,
        after_batch=after_batch,
        group=together,
    )
    if together.rank > 0:
        return
    _write(results_dir / "metrics.json", measured, scores.per_class(), classes, images_measured=scores.images)
    status.running("Test metrics generated.", measured)
    print("  ".join(f"{name} {value:.4f}" for name, value in measured.items()), flush=True)


def split_batches(
    spec: Experiment, annotated: data.Annotated, size: tuple[int, int] | None, together: Group | None = None
) -> "DataLoader[Batch]":
    """dataset.val, or this process's share of it, at evaluation size, or fitted into `size`."""
    together, split = together or Group(), spec.dataset.val
    samples = loader.Samples(
        annotated,
        targets.rule_for(spec.model.mode, annotated.classes),
        spec.dataset.augmentation,
        seed=None,
        target_size=loader.pair(split.target_size),
        within=size,
    )
    batch = spec.evaluate.batch_size if spec.evaluate.batch_size > 0 else split.batch_size
    return loader.evaluation_loader(
        samples,
        batch=batch,
        size=size,
        workers=split.num_workers,
        pin=spec.dataset.pin_memory,
        rank=together.rank,
        ranks=together.ranks,
    )


def _write(
    path: Path, measured: dict[str, float], per_class: PerClass, classes: Classes, *, images_measured: int
) -> None:
    table = [
        {
            "class": class_,
            "category_id": classes[class_].category_id,
            "name": classes[class_].name,
            "isthing": classes[class_].isthing,
            **{name: int(value) if name in COUNTS else value for name, value in finite(values).items()},
        }
        for class_, values in sorted(per_class.items())
    ]
    content = {"images": images_measured, "overall": finite(measured), "per_class": table}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
