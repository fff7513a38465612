"""What a job will need: steps, seconds, memory, disk; measured by an earlier job where one had the same network.

The model behind the other figures: a training step costs a fixed overhead and time in proportion to the network's
multiply-adds, counted from the spec. Its constants are fitted to networks that were timed on two CPU cores with our
engine (benchmarks/engine_cpu.md): Swin-T at 256 pixels, 2.3 s for a batch of 2, and the `mini` preset, 0.25 to 0.35 s
for a batch of 8 at 128 to 160 pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mask2former_mcp.jobs.plan import Estimate
from mask2former_mcp.lineage import Earlier
from mask2former_mcp.planning.cross_field import swin_size
from mask2former_mcp.planning.rules import Situation
from mask2former_mcp.spec import dotted

_MEGA = 1e6
# seconds = overhead + multiply-adds / rate; a training step is one forward and two of them backward
_CPU_OVERHEAD_S, _CPU_RATE = 0.1, 4.6e10  # two cores, fp32
_GPU_OVERHEAD_S, _GPU_RATE = 0.08, 6.0e12  # one H100-class GPU, plain PyTorch path
_FORWARD_SHARE = 0.3
_CORES = 2
_BYTES_PER_WEIGHT = 16  # weight, gradient and AdamW's two moments, fp32
_SWIN_T_ACTIVATIONS_GB = 7.8  # per megapixel of one training image; a smaller network needs less, by this power:
_ACTIVATION_POWER = 0.65
_EFFICIENTVIT_SHARE = 0.6  # of Swin-T's multiply-adds, roughly, for its middle sizes
_START_S = 8.0
_EXPORT_S = 45.0
_ENOUGH_STEPS = 50  # fewer say little about the next ones


@dataclass(frozen=True, slots=True)
class Network:
    """`multiply_adds` per megapixel of input, forward; `weights` is their number."""

    multiply_adds: float
    weights: float


def network(spec: Mapping[str, Any]) -> Network:
    """Count the network of a spec, coarsely: attention and linear layers, convolutions, mask products."""
    swin, head = dotted.get(spec, "model.backbone.swin"), dotted.get(spec, "model.sem_seg_head")
    former = dotted.get(spec, "model.mask_former")
    width, depths, _ = swin_size(spec)
    work = weights = 0.0
    for stage, depth in enumerate(depths):
        channels, tokens = width * 2**stage, _MEGA / 16 / 4**stage
        per_token = (4 + 2 * swin["mlp_ratio"]) * channels**2 + 2 * swin["window_size"] ** 2 * channels
        work += depth * tokens * per_token
        weights += depth * (4 + 2 * swin["mlp_ratio"]) * channels**2 + 8 * channels**2
    if dotted.get(spec, "model.backbone.type") == "efficientvit":
        work, weights = work * _EFFICIENTVIT_SHARE, weights * _EFFICIENTVIT_SHARE
    conv, mask = head["convs_dim"], head["mask_dim"]
    tokens = _MEGA * (1 / 64 + 1 / 256 + 1 / 1024)
    layer = 2 * conv**2 + 480 * conv + 2 * conv * 1024
    work += head["transformer_enc_layers"] * tokens * layer + _MEGA / 16 * (width * conv + 9 * conv**2 + conv * mask)
    weights += head["transformer_enc_layers"] * layer + 9 * conv**2 + 14 * width * conv
    hidden, queries = former["hidden_dim"], former["num_object_queries"]
    layers = max(1, former["dec_layers"] - 1)
    work += layers * tokens / 3 * 2 * hidden**2 + (layers + 1) * queries * mask * _MEGA / 16
    weights += layers * (8 * hidden**2 + 2 * hidden * former["dim_feedforward"]) + 4 * queries * hidden
    return Network(work, weights)


def estimate(situation: Situation, earlier: Sequence[Earlier]) -> Estimate:
    """The estimate of one job. Seconds and GB; None where nothing is known."""
    spec, machine = situation.spec, situation.machine
    block = spec.get(situation.action, {})
    gpus = (
        min(int(block.get("num_gpus", 1)), machine.gpus)
        if situation.runtime == "engine"
        else int(block.get("num_gpus", 1))
    )
    if situation.action == "gen_trt_engine":
        return Estimate(
            gpus=1, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="none for TensorRT builds"
        )
    if situation.deploy:
        return Estimate(
            gpus=1, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="none for TAO's TensorRT image"
        )
    size = network(spec)
    if situation.action == "train":
        return _train(situation, size, gpus, earlier)
    if situation.action == "export":
        disk = size.weights * 4 / 1e9
        return Estimate(
            gpus=gpus, memory_gb=_round(2 + 3 * disk), steps=1, seconds=_EXPORT_S, disk_gb=_round(disk), basis="model"
        )
    images = situation.images.get("inference" if situation.action == "inference" else "eval")
    pixels = _test_pixels(spec)
    memory = _memory(size, pixels, 1, training=False, gpu=gpus > 0)
    if images is None:
        return Estimate(gpus=gpus, memory_gb=memory, steps=None, seconds=None, disk_gb=None, basis="model")
    if situation.action == "quantize":
        images *= 2  # measured before and after
    seconds = _START_S + images * _seconds(size, pixels, 1, situation, gpus, _FORWARD_SHARE)
    return Estimate(
        gpus=gpus, memory_gb=memory, steps=images, seconds=round(seconds, 1),
        disk_gb=_round(images * 3e-4 + 0.01), basis=_basis(situation),
    )  # fmt: skip


def _train(situation: Situation, size: Network, gpus: int, earlier: Sequence[Earlier]) -> Estimate:
    spec = situation.spec
    train = spec["train"]
    batch = int(dotted.get(spec, "dataset.train.batch_size"))
    ranks = max(1, gpus) * int(train["num_nodes"])
    epochs = int(train["num_epochs"])
    images = situation.images.get("train")
    times = int(train.get("accumulate_grad_batches", 1))
    per_epoch = train.get("iters_per_epoch") or (math.ceil(images / (batch * ranks * times)) if images else None)
    height, width = dotted.get(spec, "dataset.augmentation.train_crop_size")
    memory = _memory(size, height * width, batch, training=True, gpu=gpus > 0)
    if per_epoch is None:
        return Estimate(gpus=gpus, memory_gb=memory, steps=None, seconds=None, disk_gb=None, basis="model")
    steps = epochs * int(per_epoch)
    span = epochs if train["checkpoint_interval_unit"] == "epoch" else steps
    kept = max(1, span // int(train["checkpoint_interval"]))
    disk = _round(kept * size.weights * 12 / 1e9 + 0.02)
    validations = epochs // int(train["validation_interval"])
    step_s = times * _seconds(size, height * width, batch, situation, gpus, 1.0)
    image_s = _seconds(size, _test_pixels(spec), 1, situation, gpus, _FORWARD_SHARE)
    validation_s = validations * situation.images.get("eval", 0) * image_s
    total, basis = _START_S + steps * step_s + validation_s, _basis(situation)
    measured = _measured(situation, earlier)
    if measured is not None and measured.step_s:
        total = _START_S + steps * measured.step_s + validation_s * measured.step_s / step_s
        basis = f"measured by {measured.job_id}"
    elif measured is not None:
        total, basis = measured.seconds / measured.steps * steps, f"measured by {measured.job_id}"
    return Estimate(gpus=gpus, memory_gb=memory, steps=steps, seconds=round(total, 1), disk_gb=disk, basis=basis)


def _seconds(size: Network, pixels: float, batch: int, situation: Situation, gpus: int, share: float) -> float:
    """Seconds of one step with `batch` images of `pixels`; `share` 1 for training, less for a forward pass alone."""
    work = share * 3 * size.multiply_adds * pixels / _MEGA * batch
    if gpus > 0 or situation.runtime == "tao":
        return _GPU_OVERHEAD_S * share + work / _GPU_RATE
    faster = (max(1, situation.machine.cpus) / _CORES) ** 0.7
    if dotted.get(situation.spec, "train.precision") == "bf16" and situation.action == "train":
        faster *= 1.4
    return float(_CPU_OVERHEAD_S * share + work / _CPU_RATE / faster)


def _measured(situation: Situation, earlier: Sequence[Earlier]) -> Earlier | None:
    """The longest earlier job with the same network; of a tiny one, most of the time is its start and validation."""
    here = fingerprint(situation.spec, situation.action)
    alike = (
        job
        for job in earlier
        if job.steps >= _ENOUGH_STEPS and job.seconds > 0 and fingerprint(job.spec, situation.action) == here
    )
    return max(alike, key=lambda job: job.steps, default=None)


def _basis(situation: Situation) -> str:
    kind = "GPU" if situation.machine.gpus else f"{situation.machine.cpus} CPU core(s)"
    return f"model of our engine for {kind}; rough, within a factor of two or three"


def fingerprint(spec: Mapping[str, Any], action: str) -> tuple[str, ...]:
    """What decides the time of a step: equal for two specs when their steps take equally long."""
    keys = (
        "dataset.train.batch_size", "dataset.augmentation", "train.precision", "train.num_gpus",
        "train.accumulate_grad_batches", "model.backbone.type", "model.sem_seg_head", "model.mask_former",
        "model.backbone.efficientvit.name",
    )  # fmt: skip
    named = [f"{swin_size(spec)}"]
    for key in keys if action == "train" else keys[5:]:
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


def _memory(size: Network, pixels: float, batch: int, *, training: bool, gpu: bool) -> float:
    relative = (size.multiply_adds / _SWIN_T.multiply_adds) ** _ACTIVATION_POWER
    activations = _SWIN_T_ACTIVATIONS_GB * relative * pixels / _MEGA * batch
    if training:
        return _round(0.5 + size.weights * _BYTES_PER_WEIGHT / 1e9 + activations + (0.5 if gpu else 0))
    return _round(0.5 + size.weights * 4 / 1e9 + activations * 0.25 + (0.5 if gpu else 0))


def _round(value: float) -> float:
    return round(value, 2)


_SWIN_T = Network(multiply_adds=2.48e11, weights=52e6)
