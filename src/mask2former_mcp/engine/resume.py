"""Where a training run is, on disk: a checkpoint from which it goes on exactly as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mask2former_mcp.engine import checkpoint, device, random_state, sharding
from mask2former_mcp.engine.group import Group
from mask2former_mcp.engine.status import finite


@dataclass
class State:
    """The position of the loop; weights, optimiser, schedule and generators are beside it in the checkpoint."""

    seed: int
    steps: int  # per epoch
    images: int  # per step, of all processes
    step: int = 0  # optimiser steps done
    loss_sum: float = 0.0  # of the epoch that is under way
    loss_count: int = 0
    seconds: float = 0.0  # of training, over all attempts
    metrics: dict[str, float] = field(default_factory=dict)  # of the last validation
    validated: int = -1  # the last epoch whose end (losses, validation, row) was completed

    @property
    def epoch(self) -> int:
        """The epoch of the last step done, from 0."""
        return max(0, (self.step - 1) // self.steps)


def save(
    folder: Path,
    state: State,
    *,
    fabric: Fabric,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LambdaLR,
    hyper_parameters: Mapping[str, Any],
    beside: Mapping[str, Tensor] | None = None,
    group: Group | None = None,
) -> None:
    """Writes `model_epoch_*_step_*.pth` and the latest link. Several processes come here together: the first one writes
    what all have, and they go on when it is written. beside: see `checkpoint.save`.

    Raises FloatingPointError for weights that are no numbers: nobody could go on from them, and `latest` would be they.
    """
    group = group or Group()
    first = group.rank == 0
    weights, moments = (sharding.whole(of.state_dict(), keep=first) for of in (model, optimizer))
    broken = [name for name, value in weights.items() if not bool(value.isfinite().all())] if first else []
    if broken := group.from_first(broken):
        raise FloatingPointError(
            f"{len(broken)} weights are not finite after step {state.step} (first: {broken[0]}): nothing was saved."
            " What helps: a smaller train.optim.lr (a tenth), train.clip_grad_norm above 0, train.precision=fp32."
        )
    scaler = device.loss_scaler(fabric)
    generators = group.things(random_state.snapshot())
    if first:
        checkpoint.save(
            folder / checkpoint.file_name(state.epoch, state.step),
            model=weights,
            optimizer=moments,
            scheduler=schedule,
            epoch=state.epoch,
            global_step=state.step,
            rng={**generators[0], "others": generators[1:]},
            metrics=finite(state.metrics) if state.validated == state.epoch else {},
            hyper_parameters=hyper_parameters,
            beside=beside,
            progress={**vars(state), "scaler": scaler.state_dict() if scaler is not None else {}},
        )
    group.meet()


def open_run(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that a run can be continued from. Raises ValueError for one with weights only."""
    content = checkpoint.load(path)
    if not content.get("optimizer_states") or not content.get("progress"):
        raise ValueError(
            f"{path} holds weights but no state of a run: it cannot be resumed."
            " To start a new run from it, set train.pretrained_model_path instead."
        )
    return content


def restore(
    content: Mapping[str, Any],
    steps: int,
    images: int,
    *,
    fabric: Fabric,
    group: Group,
    optimizer: Optimizer,
    schedule: LambdaLR,
) -> State:
    """Optimiser, schedule, scaler and generators as they were; returns the position. A process more than there were
    keeps its own generators.

    `steps` per epoch and `images` per step as the spec now gives them. Raises ValueError when those are not what the
    run was started with.
    """
    saved = {"images": images, **content["progress"]}  # older checkpoints do not say it
    if (before := (saved["steps"], saved["images"])) != (steps, images):
        raise ValueError(
            f"the run was started with {before[0]} steps an epoch of {before[1]} images, the spec now gives {steps} of"
            f" {images}: resume with the same training split and train.iters_per_epoch, and the same product of"
            " dataset.train.batch_size, train.accumulate_grad_batches and processes (train.num_gpus x train.num_nodes)"
        )
    optimizer.load_state_dict(sharding.share_of(content["optimizer_states"][0], optimizer))
    schedule.load_state_dict(content["lr_schedulers"][0])
    if (scaler := device.loss_scaler(fabric)) is not None and saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    generators = [content["rng"], *content["rng"].get("others", [])]
    if group.rank < len(generators):
        random_state.restore(generators[group.rank])
    return State(**{name: saved[name] for name in State.__dataclass_fields__})
