"""What a job will need: steps, seconds, memory, disk; seconds as an earlier job with the same network took them, where
there was one, and everything else by the model of `pace.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mask2former_mcp.jobs.plan import Estimate
from mask2former_mcp.lineage import Earlier
from mask2former_mcp.planning.cross_field import swin_size
from mask2former_mcp.planning.pace import Pace, pace
from mask2former_mcp.planning.rules import Situation
from mask2former_mcp.spec import dotted

_START_S = 8.0
_EXPORT_S = 45.0
_ENOUGH_STEPS = 50  # fewer say little about the next ones
_NOTHING = {"memory_gb": None, "steps": None, "seconds": None, "disk_gb": None}


def estimate(situation: Situation, earlier: Sequence[Earlier]) -> Estimate:
    """The estimate of one job. Seconds and GB; None where nothing is known."""
    gpus = int(situation.spec.get(situation.action, {}).get("num_gpus", 1))
    if situation.action == "gen_trt_engine":
        return Estimate(gpus=1, **_NOTHING, basis="none for TensorRT builds")
    if situation.deploy:
        return Estimate(gpus=1, **_NOTHING, basis="none for TAO's TensorRT image")
    if situation.runtime == "engine":
        gpus = min(gpus, situation.machine.gpus)
    here = pace(situation, gpus)
    if situation.action == "train":
        return _train(situation, here, gpus, earlier)
    if situation.action == "export":
        disk = here.size.weights * 4 / 1e9
        return Estimate(
            gpus=gpus, memory_gb=_round(2 + 3 * disk), steps=1, seconds=_EXPORT_S, disk_gb=_round(disk), basis="model"
        )
    return _predict(situation, here, gpus)


def _predict(situation: Situation, here: Pace, gpus: int) -> Estimate:
    """evaluate, inference and quantize: one image after the other."""
    writes = situation.action == "inference"
    images = situation.images.get("inference" if writes else "eval")
    pixels = _test_pixels(situation.spec)
    memory = _round(here.memory(pixels, 1, steps=None))
    if images is None:
        return Estimate(gpus=gpus, **{**_NOTHING, "memory_gb": memory}, basis="model")
    if situation.action == "quantize":
        images *= 2  # measured before and after
    workers = int(dotted.get(situation.spec, f"dataset.{'test' if writes else 'val'}.num_workers"))
    return Estimate(
        gpus=gpus, memory_gb=memory, steps=images,
        seconds=round(_START_S + images * here.image(pixels, workers, writes=writes), 1),
        disk_gb=_round(images * 3e-4 + 0.01), basis=here.basis,
    )  # fmt: skip


def _train(situation: Situation, here: Pace, gpus: int, earlier: Sequence[Earlier]) -> Estimate:
    spec = situation.spec
    train, data = spec["train"], spec["dataset"]
    batch, epochs = int(data["train"]["batch_size"]), int(train["num_epochs"])
    images = situation.images.get("train")
    ranks, times = max(1, gpus) * int(train["num_nodes"]), int(train.get("accumulate_grad_batches", 1))
    per_epoch = train.get("iters_per_epoch") or (max(1, images // (batch * ranks * times)) if images else None)
    height, width = data["augmentation"]["train_crop_size"]
    steps = epochs * int(per_epoch or 0)
    memory = _round(here.memory(height * width, batch, steps=steps))
    if per_epoch is None:
        return Estimate(gpus=gpus, **{**_NOTHING, "memory_gb": memory}, basis="model")
    span = epochs if train["checkpoint_interval_unit"] == "epoch" else steps
    kept = max(1, span // int(train["checkpoint_interval"]))
    disk = _round(kept * here.size.weights * 12 / 1e9 + 0.02)
    step_s, compiling_s = here.step(height * width, batch, int(data["train"]["num_workers"]), steps)
    step_s *= times
    measured_images = epochs // int(train["validation_interval"]) * situation.images.get("eval", 0)
    validation_s = measured_images * here.image(_test_pixels(spec), int(data["val"]["num_workers"]))
    total, basis = _START_S + compiling_s + steps * step_s + validation_s, here.basis
    if (measured := _measured(situation, earlier)) is not None:
        basis = f"seconds measured by {measured.job_id}; memory and disk by the model"
        total = measured.seconds / measured.steps * steps
        if measured.step_s:
            total = _START_S + steps * measured.step_s + validation_s * measured.step_s / step_s
    return Estimate(gpus=gpus, memory_gb=memory, steps=steps, seconds=round(total, 1), disk_gb=disk, basis=basis)


def _measured(situation: Situation, earlier: Sequence[Earlier]) -> Earlier | None:
    """The longest earlier job with the same network; of a tiny one, most of the time is its start and validation."""
    here = fingerprint(situation.spec, situation.action)
    alike = (
        job
        for job in earlier
        if job.steps >= _ENOUGH_STEPS and job.seconds > 0 and fingerprint(job.spec, situation.action) == here
    )
    return max(alike, key=lambda job: job.steps, default=None)


def fingerprint(spec: Mapping[str, Any], action: str) -> tuple[str, ...]:
    """What decides the time of a step: equal for two specs when their steps take equally long."""
    keys = (
        "dataset.train.batch_size", "dataset.train.num_workers", "dataset.augmentation", "train.precision",
        "train.num_gpus", "train.accumulate_grad_batches", "model.backbone.type",
        "model.sem_seg_head", "model.mask_former", "model.backbone.efficientvit.name",
    )  # fmt: skip
    named = [f"{swin_size(spec)}"]
    for key in keys if action == "train" else keys[6:]:
        try:
            value = dotted.get(spec, key)
        except KeyError:
            continue
        if isinstance(value, Mapping):
            value = sorted((name, str(inner)) for name, inner in value.items() if name != "num_classes")
        named.append(f"{key}={value}")
    return tuple(named)


def _test_pixels(spec: Mapping[str, Any]) -> float:
    """An image with sides 4:3 whose short side is test_min_size, capped by test_max_size."""
    short, cap = (int(dotted.get(spec, f"dataset.augmentation.test_{end}_size")) for end in ("min", "max"))
    return float(short * min(cap, round(short * 4 / 3)))


def _round(value: float) -> float:
    return round(value, 2)
