"""Where and in which precision a verb computes: one Lightning Fabric, from the spec's keys and from what is there."""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer

from mask2former_mcp.engine import fast
from mask2former_mcp.engine.loader import cores
from mask2former_mcp.engine.replicas import Replicated
from mask2former_mcp.engine.sharding import ShardedStrategy
from mask2former_mcp.spec.actions import Evaluate
from mask2former_mcp.spec.train import Train

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
HALF_WEIGHTS: dict[str, Any] = {"fp32": "32-true", "fp16": "16-true", "bf16": "bf16-true"}
# A process that is only slow (it draws pictures, writes a checkpoint) is waited for; one that died is noticed at once,
# by whoever started it (launch.py).
PATIENCE = timedelta(minutes=30)
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # on GPUs objects, such as detections, travel from the host


class Alike(DDPStrategy):  # type: ignore[misc]  # Fabric is not typed for us
    """Processes with the same network each, which nothing changes."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        return module


def training(settings: Train) -> Fabric:
    """The devices that train. Raises ValueError for what this machine cannot do, and says what can."""
    cuda, several = torch.cuda.is_available(), settings.num_gpus * settings.num_nodes > 1
    use_threads(gpu=cuda)
    sharded = several and settings.distributed_strategy == "fsdp"
    precision = "fp16" if sharded and cuda else settings.precision  # as TAO does
    if precision == "fp16" and not cuda:
        raise ValueError(
            "train.precision = fp16 needs a GPU: half precision does not train on a CPU."
            " Set train.precision=bf16 or fp32."
        )
    if cuda:
        torch.backends.cudnn.benchmark = settings.cudnn.benchmark
        torch.backends.cudnn.deterministic = settings.cudnn.deterministic
    how = {"timeout": PATIENCE, "process_group_backend": BACKENDS["cuda" if cuda else "cpu"]}
    strategy: Any = "auto"
    if several:
        strategy = ShardedStrategy(**how) if sharded else _copied(settings, how)
    return _fabric(settings.gpu_ids, settings.num_gpus, settings.num_nodes, PRECISIONS[precision], strategy)


def _copied(settings: Train, how: Mapping[str, Any]) -> DDPStrategy:
    """DDP, or what can do what it cannot: leave out the average after a batch of a step (with static_graph it fails
    then), and be recorded in a graph together with the step."""
    own = settings.accumulate_grad_batches > 1 or fast.graph_together()
    return Replicated(**how) if own else DDPStrategy(static_graph=True, **how)


def _fabric(gpu_ids: Sequence[int], each: int, nodes: int, precision: Any, strategy: Any) -> Fabric:
    """`each` devices on each node; launch.py starts the processes, whatever a cluster's environment says of them."""
    cuda = torch.cuda.is_available()
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=gpus(gpu_ids, each) if cuda else each,
        num_nodes=nodes,
        strategy=strategy,
        precision=precision,
        plugins=[LightningEnvironment()],
    )


def described(fabric: Fabric, settings: Train) -> str:
    """The devices and how they share the work, for the log."""
    arithmetic = next(name for name, value in PRECISIONS.items() if value == fabric.strategy.precision.precision)
    if fabric.world_size == 1:
        return f"{fabric.device}, {arithmetic}"
    kind = "GPUs" if fabric.device.type == "cuda" else "CPU processes"
    how = f"{settings.distributed_strategy} over {'NCCL' if fabric.device.type == 'cuda' else 'gloo'}"
    nodes = f" on {settings.num_nodes} nodes" if settings.num_nodes > 1 else ""
    return f"{fabric.world_size} {kind}{nodes}, {how}, {arithmetic}"


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


def measuring(settings: Evaluate, precision: str) -> Fabric:
    """The devices that share a split between them, each with the whole network; on a CPU fp16 means fp32."""
    if settings.num_gpus * settings.num_nodes == 1:
        return single(settings.gpu_ids, precision)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    use_threads(gpu=kind == "cuda")
    strategy = Alike(timeout=PATIENCE, process_group_backend=BACKENDS[kind])
    precision = "fp32" if (kind, precision) == ("cpu", "fp16") else precision
    return _fabric(settings.gpu_ids, settings.num_gpus, settings.num_nodes, PRECISIONS[precision], strategy)


def single(gpu_ids: Sequence[int], precision: str, *, half_weights: bool = False) -> Fabric:
    """One device to measure or predict on: the first of `gpu_ids`, or the CPU, where fp16 means fp32.

    half_weights: in fp16 and bf16 the weights are in it too, not only what is computed with them.
    """
    cuda = torch.cuda.is_available()
    use_threads(gpu=cuda)
    meant = "fp32" if precision == "fp16" and not cuda else precision
    return _fabric(gpu_ids[:1], 1, 1, (HALF_WEIGHTS if half_weights else PRECISIONS)[meant], "auto")


def named(name: str) -> torch.device:
    """The device of quantize.device; where no GPU is, the CPU. Raises ValueError for a GPU that is not there."""
    kind, _, index = name.partition(":")
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", gpus([int(index or 0)], 1)[0])


def gpus(gpu_ids: Sequence[int], wanted: int) -> list[int]:
    """The GPU indices to use. Raises ValueError when the machine has fewer."""
    there = torch.cuda.device_count()
    chosen = list(gpu_ids) if len(gpu_ids) == wanted else list(range(wanted))
    if any(i >= there for i in chosen):
        raise ValueError(
            f"GPUs {chosen} were asked for, this machine shows {there}: set num_gpus and gpu_ids accordingly"
        )
    return chosen


def use_threads(*, gpu: bool = False) -> None:
    """One thread a core, or as many as OMP_NUM_THREADS says; the loader's workers have one each and mostly wait.

    gpu: where a GPU computes one thread is enough. Those that wait for the next small tensor would keep every core busy
    (183 ms of them for each image segmented, on 16 cores), and with it the processes that read and write files.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or (1 if gpu else cores())))
