"""Training: the loop, in the open."""

import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from mask2former_mcp.engine import (
    artifacts,
    device,
    fast,
    interruption,
    loader,
    measuring,
    memory,
    out_of_memory,
    resume,
    scoring,
    step_graph,
)
from mask2former_mcp.engine.criterion import Divisors
from mask2former_mcp.engine.curves import Curves
from mask2former_mcp.engine.loader import Batch
from mask2former_mcp.engine.progress import Progress, clock
from mask2former_mcp.engine.replicas import Replicated
from mask2former_mcp.engine.run import Run, prepare
from mask2former_mcp.engine.status import finite
from mask2former_mcp.spec.experiment import Experiment

PICTURED = 3  # images in the picture of a validation
CURVE_EVERY = 20  # steps between two points of the training curves
WAITS = 0.1  # of the time, spent waiting for data, are worth a word
Share = tuple[Batch, ...]  # of an optimiser step: the batches that a process learns from, one after the other
BETTER_LOSS = (
    "What helps: a smaller train.optim.lr (a tenth), train.clip_grad_norm above 0, train.precision=fp32;"
    " then look at these images and their annotations."
)


def run(spec: Experiment, results_dir: Path) -> None:
    """Trains as the spec says; checkpoints, metrics and pictures land in `results_dir`. Resumes exactly when told to.

    Raises ValueError for specs and data that cannot train, FloatingPointError when the loss stops being a number, and
    Interrupted after a signal, a resumable checkpoint written.
    """
    with interruption.deferred() as asked:
        work = prepare(spec, results_dir)
        work.asked = asked
        if work.group.ranks > 1:
            asked.agree = work.group.largest
        asked.obey()
        try:
            fit(work)
            work.group.meet()  # nobody's sockets may close while another still reads from them
        except interruption.AtOnce:  # maybe in the middle of a step: such a state is not worth keeping
            raise
        except interruption.Interrupted:
            work.save()
            work.status.running("Saved a checkpoint to resume from.", epoch=work.state.epoch, step=work.state.step)
            raise
        finally:
            if work.curves is not None:
                work.curves.close()


def fit(work: Run) -> None:
    """All epochs that are left. Raises Interrupted at a step's border once a signal has come."""
    spec, state, steps = work.spec.train, work.state, work.state.steps
    work.progress = Progress(work.status, work.total, state.step)
    if work.fabric.is_global_zero:
        content = work.spec.model_dump(mode="json", exclude={"encryption_key"})
        first = state.step + 1 if state.step and not _is_unfinished(state) else state.step
        work.curves = Curves(
            work.folder, work.spec.wandb, first_epoch=state.validated + 1, first_step=first, spec=content
        )
    shares = work.progress.waiting(_shares(work))
    print(_summary(work), flush=True)
    graph, said = step_graph.make(work)
    if said:
        work.status.running(f"Fast path: {said}.")
        print(f"fast path: {said}", flush=True)
    work.status.running("Starting Training Loop.", epoch=state.step // steps, step=state.step, max_step=work.total)
    if _is_unfinished(state):
        end_epoch(work, state.epoch)
    work.model.train()
    for epoch in range(state.step // steps, work.epochs):
        while state.step < (epoch + 1) * steps:
            started = time.monotonic()
            loss = step(work, graph, next(shares))
            state.step += 1
            state.loss_sum += loss
            state.loss_count += 1
            state.seconds += time.monotonic() - started
            report_step(work, epoch, loss)
            if spec.checkpoint_interval_unit == "step" and state.step % spec.checkpoint_interval == 0:
                work.save()
            work.asked.obey(at_step=True)
        if pace := _pace(work):
            print(pace, flush=True)
        end_epoch(work, epoch)
    work.status.running("Training loop complete.", epoch=work.epochs - 1, step=state.step)


def step(work: Run, graph: step_graph.StepGraph | None, share: Share) -> float:
    """One optimiser step on this process's share, by the graph where there is one; returns the whole step's loss.

    Raises FloatingPointError for NaN or Inf, MemoryError with what would have fitted.
    """
    try:
        counts = [count for batch in share for count in batch.counts]
        divisors = work.criterion.divisors(counts, work.spec.model.mask_former.num_object_queries, work.fabric.device)
        if graph is not None:
            return _graph_step(work, graph, share[0], divisors)
        return _plain_step(work, share, divisors)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory.ran_out(error):
            raise
        cause = out_of_memory.cause(error)
    if graph is not None:
        graph.forget()
    # Here and not above: the exception holds the frames of the step, and they hold its tensors.
    raise MemoryError(f"{cause} {memory.what_fits(work, share[0])}")


def _plain_step(work: Run, share: Share, divisors: Divisors) -> float:
    """Forward and backward batch by batch, then into the weights, which a loss that is no number does not reach."""
    at = work.fabric.device
    total = torch.zeros((), device=at)
    for batch in share:
        prediction = work.model(work.normalize(batch.images, batch.sizes, at), every_layer=True)
        # Outside autocast: its sums over all pixels of a mask are rounded, or infinite, in half precision.
        losses = work.criterion(prediction, batch.targets(at), divisors)
        work.fabric.backward(losses.total)
        total += losses.total.detach()
    if isinstance(work.fabric.strategy, Replicated):
        work.fabric.strategy.average(work.model)
    loss = _agreed(float(total), work, share)
    if (largest := work.spec.train.clip_grad_norm) > 0:
        device.clip_gradients(work.fabric, work.model, work.plain_optimizer, largest)
    work.optimizer.step()
    work.optimizer.zero_grad(set_to_none=True)
    work.schedule.step()
    return loss


def _graph_step(work: Run, graph: step_graph.StepGraph, batch: Batch, divisors: Divisors) -> float:
    """The same by one launch. A loss that is no number has reached the weights when it is seen; the run ends on it."""
    loss = _agreed(float(graph(batch, divisors)), work, (batch,))
    work.schedule.step()
    return loss


def _agreed(loss: float, work: Run, share: Share) -> float:
    """The mean over all processes, which also tell each other here whether a signal has come to one of them.

    Raises FloatingPointError in all of them when one has a loss that is no number.
    """
    told = work.group.numbers([loss, work.asked.signal_number or 0])
    losses, signals = zip(*told, strict=True)
    work.asked.heard = int(max(signals))
    mean = sum(losses) / len(losses)
    if math.isfinite(mean):
        return float(mean)
    own = [] if math.isfinite(loss) else [os.path.basename(name) for batch in share for name in batch.names]
    names = work.group.from_first(", ".join(name for part in work.group.things(own) for name in part))
    wrong = next(value for value in [*losses, mean] if not math.isfinite(value))
    raise FloatingPointError(f"the loss is {wrong} at step {work.state.step} (images: {names}). {BETTER_LOSS}")


def report_step(work: Run, epoch: int, loss: float) -> None:
    """The progress line, status.json and the curves; the two files at intervals."""
    if not work.fabric.is_global_zero:
        return
    state = work.state
    work.progress.step(
        f"epoch {epoch + 1}/{work.epochs}  loss {state.loss_sum / state.loss_count:.3f}",
        ahead_s=work.validation_seconds * _validations_from(epoch, work),
        epoch=epoch,
        step=state.step,
        max_epoch=work.epochs - 1,
        max_step=work.total,
        time_per_epoch=clock(work.progress.seconds_per_step() * state.steps),
    )
    if work.curves is not None and (state.step % CURVE_EVERY == 0 or state.step == work.total):
        work.curves.scalars(state.step, {"train/loss": loss, "train/lr": float(work.schedule.get_last_lr()[-1])})


def end_epoch(work: Run, epoch: int) -> None:
    """Mean loss, validation where due, metrics row, checkpoint where due. An interruption inside loses none of them."""
    spec, state, last = work.spec.train, work.state, epoch + 1 == work.epochs
    measured = {"train_loss": state.loss_sum / max(1, state.loss_count)}
    work.status.running("Train metrics generated.", measured, epoch=epoch, step=state.step)
    if last or (epoch + 1) % spec.validation_interval == 0:
        work.asked.obey()
        measured.update(validate(work, epoch))
    state.metrics, state.validated, state.loss_sum, state.loss_count = measured, epoch, 0.0, 0
    if work.curves is not None:
        lr = float(work.schedule.get_last_lr()[-1])
        work.curves.epoch({**measured, "epoch": epoch, "step": state.step, "lr": lr, "seconds": state.seconds})
        work.curves.scalars(state.step, {f"epoch/{name}": value for name, value in finite(measured).items()})
    if last or (spec.checkpoint_interval_unit == "epoch" and (epoch + 1) % spec.checkpoint_interval == 0):
        work.save()


def validate(work: Run, epoch: int) -> dict[str, float]:
    """Measures the network on dataset.val, tells status.json, and draws a few images."""
    started = time.monotonic()
    model = work.spec.model
    scenes: list[artifacts.Scene] = []

    def after_batch(batch: Batch, outcomes: list[scoring.Outcome]) -> None:
        work.asked.obey()
        for b, (truth, outcome) in enumerate(zip(batch.truths, outcomes, strict=True)):
            if truth is not None and len(scenes) < PICTURED:
                height, width = batch.sizes[b]
                scenes.append((batch.images[b, :, :height, :width].permute(1, 2, 0).numpy(), truth, outcome))

    measured = measuring.score(
        work.model,
        work.validation,
        scoring.Scores(model.mode, work.spec.dataset.val.type, work.classes),
        fast.interpreter(scoring.Interpreter(model, work.classes), work.fabric.device),
        normalize=work.normalize,
        criterion=replace(work.criterion, together=False),
        device=work.fabric.device,
        after_batch=after_batch,
        group=work.group,
    )
    if work.fabric.is_global_zero:
        work.status.running("Eval metrics generated.", measured, epoch=epoch, step=work.state.step)
        shown = "  ".join(f"{k} {measured[k]:.3f}" for k in ("val_loss", "mIoU", "PQ", "AP") if k in measured)
        print(f"epoch {epoch + 1}/{work.epochs}: {shown}", flush=True)
        panel = artifacts.comparison(scenes, work.classes, mode=model.mode, threshold=model.object_mask_threshold)
        artifacts.save(work.folder / f"validation_epoch_{epoch:03d}.png", panel)
    work.validation_seconds = time.monotonic() - started
    work.progress.outside(work.validation_seconds)
    return measured


def _is_unfinished(state: resume.State) -> bool:
    """Whether the run was interrupted between the last step of an epoch and its validation."""
    return state.step > 0 and state.step % state.steps == 0 and state.validated < state.epoch


def _validations_from(epoch: int, work: Run) -> int:
    """Validations still to come, that of the given epoch included."""
    every = work.spec.train.validation_interval
    return work.epochs // every - epoch // every + (1 if work.epochs % every else 0)


def _summary(work: Run) -> str:
    weights = sum(p.numel() for p in work.model.parameters()) / 1e6
    split, size = work.spec.dataset.train, work.spec.dataset.augmentation.train_crop_size
    times, ranks = work.spec.train.accumulate_grad_batches, work.group.ranks
    return (
        f"training on {device.described(work.fabric, work.spec.train)}: {weights:.1f} M weights, {len(work.samples)}"
        f" images in crops of {size[0]} x {size[1]}, {work.epochs} epochs of {work.state.steps} steps,"
        f" batch {split.batch_size}{f' x {ranks} processes' if ranks > 1 else ''}"
        f"{f' x {times} a step' if times > 1 else ''}"
    )


def _pace(work: Run) -> str:
    """How fast the last steps were, and on a GPU how much memory all steps needed."""
    each = work.progress.recent_seconds_per_step()
    parts = []
    if each:
        share = work.progress.recent_waiting()
        waited = f" (waited {share:.0%} of the time for data: raise dataset.train.num_workers)" if share > WAITS else ""
        parts.append(f"{work.state.images / each:.1f} images/s{waited}")
    if work.fabric.device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_reserved(work.fabric.device) / 2**30:.1f} GiB reserved")
    return ", ".join(parts)


def _shares(work: Run) -> Iterator[Share]:
    """What this process has of each step that is left."""
    batches, times = iter(_training_batches(work)), work.spec.train.accumulate_grad_batches
    while share := tuple(itertools.islice(batches, times)):
        yield share


def _training_batches(work: Run) -> "DataLoader[Batch]":
    split, times = work.spec.dataset.train, work.spec.train.accumulate_grad_batches
    order = loader.Order(
        images=len(work.samples),
        batch=split.batch_size,
        steps=work.state.steps * times,
        epochs=work.epochs,
        seed=work.state.seed,
        start_step=work.state.step * times,
        rank=work.group.rank,
        ranks=work.group.ranks,
    )
    return loader.training_loader(work.samples, order, workers=split.num_workers, pin=work.spec.dataset.pin_memory)
