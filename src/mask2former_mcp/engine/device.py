"""Where and in which precision a verb computes: one Lightning Fabric, from the spec's keys and from what is there."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer

from mask2former_mcp.engine.loader import cores
from mask2former_mcp.spec.train import Train

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


def training(settings: Train) -> Fabric:
    """The devices that train. Raises ValueError for what this machine cannot do, and says what can."""
    use_threads()
    cuda = torch.cuda.is_available()
    if settings.precision == "fp16" and not cuda:
        raise ValueError(
            "train.precision = fp16 needs a GPU: half precision does not train on a CPU."
            " Set train.precision=bf16 or fp32."
        )
    if settings.distributed_strategy == "fsdp" and settings.num_gpus > 1:
        raise NotImplementedError("train.distributed_strategy = fsdp is not available yet. Set it to ddp.")
    if settings.num_nodes > 1:
        raise NotImplementedError("train.num_nodes above 1 is not available yet. Set train.num_nodes=1.")
    if not cuda:
        return Fabric(accelerator="cpu", devices=1, precision=PRECISIONS[settings.precision])
    devices = gpus(settings.gpu_ids, settings.num_gpus)
    torch.backends.cudnn.benchmark = settings.cudnn.benchmark
    torch.backends.cudnn.deterministic = settings.cudnn.deterministic
    strategy: Any = DDPStrategy(static_graph=True) if len(devices) > 1 else "auto"
    return Fabric(accelerator="cuda", devices=devices, strategy=strategy, precision=PRECISIONS[settings.precision])


def loss_scaler(fabric: Fabric) -> Any:
    """The loss scaler of fp16, or None."""
    return getattr(fabric.strategy.precision, "scaler", None)


def clip_gradients(fabric: Fabric, model: nn.Module, optimizer: Optimizer, largest: float) -> None:
    """Scales all gradients down together until their norm is `largest`.

    Fabric's own refuses a fused optimiser in fp16, though PyTorch's scaler knows that the gradients were unscaled.
    """
    if (scaler := loss_scaler(fabric)) is not None:
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), largest)


def single(gpu_ids: Sequence[int], precision: str) -> Fabric:
    """One device to measure or predict on: the first of `gpu_ids`, or the CPU, where fp16 means fp32."""
    use_threads()
    if not torch.cuda.is_available():
        return Fabric(accelerator="cpu", devices=1, precision=PRECISIONS["fp32" if precision == "fp16" else precision])
    devices = gpus(gpu_ids[:1], 1)
    return Fabric(accelerator="cuda", devices=devices, precision=PRECISIONS[precision])


def gpus(gpu_ids: Sequence[int], wanted: int) -> list[int]:
    """The GPU indices to use. Raises ValueError when the machine has fewer."""
    there = torch.cuda.device_count()
    chosen = list(gpu_ids) if len(gpu_ids) == wanted else list(range(wanted))
    if any(i >= there for i in chosen):
        raise ValueError(
            f"GPUs {chosen} were asked for, this machine shows {there}: set num_gpus and gpu_ids accordingly"
        )
    return chosen


def use_threads() -> None:
    """One thread a core, or as many as OMP_NUM_THREADS says; the loader's workers have one each and mostly wait."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or cores()))
