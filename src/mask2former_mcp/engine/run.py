"""One training run: what the loop needs, put together from the spec."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from mask2former_mcp.engine import (
    batch_norm,
    checkpoint,
    criterion,
    data,
    device,
    fast,
    group,
    initial_weights,
    loader,
    optim,
    resume,
    targets,
)
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.curves import Curves
from mask2former_mcp.engine.group import Group
from mask2former_mcp.engine.interruption import Request
from mask2former_mcp.engine.loader import Batch, Normalize
from mask2former_mcp.engine.model import network
from mask2former_mcp.engine.processes import is_first
from mask2former_mcp.engine.progress import Progress
from mask2former_mcp.engine.status import StatusLog
from mask2former_mcp.spec.experiment import Experiment


@dataclass
class Run:
    """What the loop needs; made once by `prepare`."""

    spec: Experiment
    folder: Path
    status: StatusLog
    fabric: Fabric
    group: Group
    model: Any  # the network as Fabric wraps it
    optimizer: Any  # likewise
    plain_optimizer: AdamW
    schedule: LambdaLR
    criterion: criterion.Criterion
    normalize: Normalize
    classes: Classes
    epochs: int
    state: resume.State
    samples: loader.Samples
    validation: "DataLoader[Batch]"
    progress: Progress = field(init=False)
    curves: Curves | None = None  # on the first process
    validation_seconds: float = 0.0  # what the last one took
    asked: Request = field(default_factory=Request)  # to end

    @property
    def total(self) -> int:
        return self.epochs * self.state.steps

    def save(self) -> None:
        resume.save(
            self.folder,
            self.state,
            fabric=self.fabric,
            group=self.group,
            model=self.model.module,
            optimizer=self.plain_optimizer,
            schedule=self.schedule,
            hyper_parameters={
                "spec": self.spec.model_dump(mode="json", exclude={"encryption_key"}),
                "classes": self.classes.plain(),
            },
            beside={checkpoint.LOSS_WEIGHTS: self.criterion.class_weights(len(self.classes))},
        )


def prepare(spec: Experiment, folder: Path) -> Run:
    """Data, network, optimiser: everything up to the first step."""
    status = StatusLog(folder)
    resumed_from = spec.train.resume_training_checkpoint_path
    _refuse_mixed_runs(folder, resumed_from)
    fabric = device.training(spec.train)
    fabric.launch()
    together = group.of(fabric)
    content = resume.open_run(Path(resumed_from)) if resumed_from else None
    seed = spec.train.seed if spec.train.seed >= 0 else int.from_bytes(os.urandom(4), "little")
    seed = content["progress"]["seed"] if content else together.from_first(seed)
    torch.manual_seed(seed)

    annotated = data.open_split(spec.dataset.train, spec.dataset, num_classes=spec.model.sem_seg_head.num_classes)
    samples = _training_samples(spec, annotated, seed)
    batch, others = spec.dataset.train.batch_size, together.ranks * spec.train.accumulate_grad_batches
    steps = loader.steps_per_epoch(len(samples), batch, others, spec.train.iters_per_epoch)
    epochs = spec.train.num_epochs
    if spec.train.is_dry_run:
        steps, epochs = min(2, steps), 1

    model = network.build(spec)
    if together.ranks > 1:
        batch_norm.synchronise(model, fabric.device)  # of the backbones here, EfficientViT has batch norms
    _load_weights(model, spec, status)
    _freeze(model, spec, status)
    fast.accelerate(model, fabric.device)
    wrapped = fabric.setup_module(model)
    optimizer = optim.optimizer(
        model, spec.train.optim
    )  # after the network was sharded: its parameters are others then
    schedule = optim.schedule(optimizer, spec.train.optim, steps_per_epoch=steps, total_steps=epochs * steps)
    if together.rank > 0:
        torch.manual_seed(seed + together.rank)  # each drops other paths of the network
    if content is None:
        state = resume.State(seed=seed, steps=steps, images=batch * others)
    else:  # after everything that draws from the generators
        state = resume.restore(
            content,
            steps,
            batch * others,
            fabric=fabric,
            group=together,
            optimizer=optimizer,
            schedule=schedule,
        )
        status.running(f"Resuming training from checkpoint: {resumed_from}", epoch=state.epoch, step=state.step)
    return Run(
        spec=spec,
        folder=folder,
        status=status,
        fabric=fabric,
        group=together,
        model=wrapped,
        optimizer=fabric.setup_optimizers(optimizer),
        plain_optimizer=optimizer,
        schedule=schedule,
        criterion=fast.criterion(
            replace(criterion.build(spec), together=together.ranks > 1),
            fabric.device,
            mask_dim=spec.model.sem_seg_head.mask_dim,
        ),
        normalize=Normalize(spec.dataset.pixel_mean, spec.dataset.pixel_std),
        classes=annotated.classes,
        epochs=epochs,
        state=state,
        samples=samples,
        validation=_validation_batches(spec, annotated.classes, together),
    )


def _refuse_mixed_runs(folder: Path, resumed_from: str) -> None:
    found = sorted(p.name for p in folder.glob("model_epoch_*.pth"))
    if found and not resumed_from:
        raise ValueError(
            f"{folder} holds {len(found)} checkpoints of another run already (last: {found[-1]}). Use an empty"
            " results_dir, or continue that run with train.resume_training_checkpoint_path."
        )


def _training_samples(spec: Experiment, annotated: data.Annotated, seed: int) -> loader.Samples:
    keep = loader.can_share(spec.dataset.train.num_workers)
    rule = targets.rule_for(spec.model.mode, annotated.classes)
    return loader.Samples(annotated, rule, spec.dataset.augmentation, seed=seed, cache=keep)


def _validation_batches(spec: Experiment, classes: Classes, together: Group) -> "DataLoader[Batch]":
    split = spec.dataset.val
    annotated = data.open_split(split, spec.dataset, num_classes=len(classes), classes=classes)
    rule = targets.rule_for(spec.model.mode, classes)
    size = loader.pair(split.target_size)
    samples = loader.Samples(annotated, rule, spec.dataset.augmentation, seed=None, target_size=size)
    if spec.train.is_dry_run:
        samples.limit = split.batch_size
    return loader.evaluation_loader(
        samples,
        batch=split.batch_size,
        workers=split.num_workers,
        pin=spec.dataset.pin_memory,
        rank=together.rank,
        ranks=together.ranks,
    )


def _load_weights(model: network.Mask2Former, spec: Experiment, status: StatusLog) -> None:
    """Weights to start from: those of a run to continue, else the whole network's, else the backbone's."""
    if spec.train.resume_training_checkpoint_path:
        initial_weights.load_weights(model, Path(spec.train.resume_training_checkpoint_path))
        return
    if path := spec.train.pretrained_model_path:
        loaded = initial_weights.load_weights(model, Path(path), strict=False)
    elif path := spec.model.backbone.pretrained_weights:
        loaded = initial_weights.load_backbone(model, Path(path))
    else:
        return
    report = status.path.with_name("weights.json")
    if is_first(os.environ):
        report.write_text(json.dumps(loaded.report(Path(path)), indent=2) + "\n", encoding="utf-8")
    message = f"Loaded {path}: {loaded.summary()}; the names are in {report.name}."
    print(message, flush=True)
    status.running(message)


def _freeze(model: network.Mask2Former, spec: Experiment, status: StatusLog) -> None:
    frozen, missing = optim.freeze(model, spec.train.freeze)
    for name in frozen:
        status.running(f"Freezed module {name}")
    for name in missing:
        status.skipped(f"module {name} not found. Skipped freezing")
