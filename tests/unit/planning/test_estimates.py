"""Estimates against what was measured: benchmarks/engine/README.md, one H100, Swin-T at 640 x 640."""

from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.planning.machine import Machine

H100 = Machine(gpus=1, gpu_memory_gb=80.0, cpus=16, memory_gb=128.0)
GIB = 2**30 / 1e9
SQUARE = {"dataset.augmentation.train_crop_size": [640, 640], "dataset.train.num_workers": 12}


def of_training(plan: Any, data: Path, epochs: int, per_epoch: int, **overrides: Any) -> Any:
    fixed = {"train.precision": "bf16", "train.iters_per_epoch": per_epoch, "train.validation_interval": epochs}
    asked = {"train_dataset": str(data / "alone"), "pretrained_weights": "", "num_epochs": epochs}
    return plan("train", machine=H100, overrides={**SQUARE, **fixed, **overrides}, **asked).estimate


def images_a_second(plan: Any, data: Path, batch: int, per_epoch: int, **overrides: Any) -> float:
    """Without start and validation."""
    one, two = (
        of_training(plan, data, n, per_epoch, **{"dataset.train.batch_size": batch, **overrides}) for n in (10, 20)
    )
    pace: float = batch * (two.steps - one.steps) / (two.seconds - one.seconds)
    return pace


@pytest.mark.parametrize(
    ("batch", "per_epoch", "measured", "gib"),
    [(8, 5000, 170.5, 8.5), (16, 5000, 196.2, 17.6), (8, 50, 105.0, None)],
    ids=["compiled", "compiled, batch 16", "too short to compile"],
)
def test_training_on_a_gpu_is_as_fast_and_as_big_as_measured(
    plan: Any, data: Path, batch: int, per_epoch: int, measured: float, gib: float | None
) -> None:
    assert 1 / 2.5 < images_a_second(plan, data, batch, per_epoch) / measured < 2.5
    made = of_training(plan, data, 10, per_epoch, **{"dataset.train.batch_size": batch})
    assert "H100 in bf16" in made.basis
    if gib is not None:
        assert 1 / 2.5 < made.memory_gb / (gib * GIB) < 2.5


def test_one_loader_process_holds_a_gpu_back(plan: Any, data: Path) -> None:
    """benchmarks/data: one worker makes about 50 images a second ready."""
    pace = images_a_second(plan, data, 8, 5000, **{"dataset.train.num_workers": 1})
    assert 1 / 2.5 < pace / 50 < 2.5
    assert pace < 0.5 * images_a_second(plan, data, 8, 5000)


def test_what_was_not_timed_is_estimated_slowly_and_said_to_be(plan: Any, data: Path) -> None:
    half, full = (of_training(plan, data, 10, 5000, **{"train.precision": name}) for name in ("bf16", "fp32"))
    assert full.seconds > half.seconds
    assert full.memory_gb > half.memory_gb
    assert "within a factor of two or three" in half.basis
    assert "within a factor" not in full.basis
    assert "more likely too slow" in full.basis


def test_inference_on_a_gpu_is_as_fast_as_its_files_are_written(plan: Any, data: Path, trained: Any) -> None:
    """41 images a second, overlays and masks included; the network is not what limits it."""
    few, many = (
        plan(
            "inference", machine=H100, parent_job_id=trained.job_id, inference_dataset=str(data / folder / "images")
        ).estimate
        for folder in ("coco_val", "alone")
    )
    pace = (many.steps - few.steps) / (many.seconds - few.seconds)
    assert 1 / 2.5 < pace / 41 < 2.5
