"""A whole training step as one CUDA graph: forward, matching, loss, backward, clipping and AdamW in one launch.

A graph replays the same kernels on the same memory, so a batch is copied into buffers of fixed shape: images at crop
size, targets in slots (the next power of two above the largest number of targets that came). Each number of slots has a
graph of its own; they share their memory. Reading the loss is the only time that the host waits.

What cannot be recorded runs launch by launch: a shape's first steps, an image with more targets than there are queries,
everything once recording or compiling has failed. Several processes record the average of their gradients as well
(replicas.py). What a loss is divided by they agree on before, so that this average is all that they wait for each other
at: one of them may replay while others record, have other slots, or go launch by launch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mask2former_mcp.engine import fast
from mask2former_mcp.engine.criterion import Divisors, Padded
from mask2former_mcp.engine.loader import Batch
from mask2former_mcp.engine.model.network import MASK_STRIDE
from mask2former_mcp.engine.out_of_memory import ran_out
from mask2former_mcp.engine.replicas import Replicated
from mask2former_mcp.engine.run import Run

LEAST_SLOTS = 16
WARM_UP = 3  # steps of a shape that run ungraphed first: libraries choose their kernels and memory then


@dataclass(frozen=True)
class Slots:
    """Targets of a batch in buffers: labels [B, T], masks [B, T, h, w] uint8."""

    labels: Tensor
    masks: Tensor


class StepGraph:
    """Trains on a batch by a graph. Made by `make`, for one device, bf16 or fp32."""

    def __init__(self, work: Run, *, compiled: bool) -> None:
        split, crop = work.spec.dataset.train, work.spec.dataset.augmentation.train_crop_size
        at, batch, (height, width) = work.fabric.device, split.batch_size, crop
        h, w = -(-height // MASK_STRIDE), -(-width // MASK_STRIDE)
        self.work = work
        network = work.model.module
        self.network: Any = torch.compile(network, dynamic=False) if compiled else network
        self.images = torch.zeros(batch, 3, height, width, dtype=torch.uint8, device=at)
        self.sizes = torch.zeros(batch, 2, dtype=torch.long, device=at)
        self.valid = torch.zeros(batch, h, w, dtype=torch.bool, device=at)
        self.divisors = torch.zeros(2, device=at)
        self.rates = [torch.zeros((), device=at) for _ in work.plain_optimizer.param_groups]
        self.slots: dict[int, Slots] = {}
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.warmed: dict[int, int] = {}
        self.given_up = False
        self.queries = work.spec.model.mask_former.num_object_queries
        self.stream, self.pool = None, None  # of a CPU, where the step can be run, but not recorded
        if at.type == "cuda":
            self.stream = torch.cuda.Stream(at)  # type: ignore[no-untyped-call]
            self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, divisors: Divisors) -> Tensor:
        """One optimiser step; returns its loss, on the device. The schedule is left to the caller."""
        number = self._number_of_slots(max(batch.counts))
        with self._own_stream():
            slots = self._upload(batch, number, divisors)
            if number not in self.graphs and self._is_ready(number):
                self._record(slots, number)
            if number not in self.graphs:
                return self._launch(slots, batch.counts)
            graph, loss = self.graphs[number]
            graph.replay()
        return loss

    def forget(self) -> None:
        """Returns the graphs' memory. They are not recorded again."""
        self.given_up = True
        self.work.plain_optimizer.zero_grad(set_to_none=True)  # the gradients lie in it
        self.graphs.clear()
        self.slots.clear()

    def _give_up(self, error: RuntimeError) -> None:
        """From now on launch by launch and not compiled. No weight has changed and no other process was waited for."""
        why = next(iter(str(error).splitlines()), type(error).__name__)
        said = f"Fast path: the step could not be recorded ({why}); on without, as with {fast.GRAPH}=0."
        self.work.status.running(said)
        print(said, flush=True)
        self.network = self.work.model.module
        self.given_up = True
        self.graphs.clear()

    def _free_generator(self) -> None:
        """A recording that failed leaves the random numbers of its device waiting for the recording's end."""
        if self.stream is not None:
            generator = torch.cuda.default_generators[self.stream.device_index]
            generator.graphsafe_set_state(generator.clone_state())

    def _is_ready(self, number: int) -> bool:
        """Whether a step with so many slots is to be recorded now."""
        if self.given_up or number > self.queries:
            return False
        self.warmed[number] = self.warmed.get(number, 0) + 1
        return self.warmed[number] > WARM_UP

    def _number_of_slots(self, targets: int) -> int:
        """The next power of two, and not more than there are queries where those are enough."""
        number = max(LEAST_SLOTS, 1 << max(targets - 1, 0).bit_length())
        return min(number, self.queries) if targets <= self.queries else number

    def _upload(self, batch: Batch, number: int, divisors: Divisors) -> Slots:
        """The batch into the buffers. Targets travel one after the other and find their slots on the device."""
        at = self.images.device
        if number not in self.slots:
            shape = (len(batch.counts), number)
            masks = torch.zeros(*shape, *self.valid.shape[1:], dtype=torch.uint8, device=at)
            self.slots[number] = Slots(torch.zeros(shape, dtype=torch.long, device=at), masks)
        slots = self.slots[number]
        self.images.copy_(batch.images, non_blocking=True)
        self.valid.copy_(batch.valid, non_blocking=True)
        self.sizes.copy_(_sendable(batch.sizes, at), non_blocking=True)
        slots.labels.zero_()
        slots.masks.zero_()
        places = [b * number + t for b, count in enumerate(batch.counts) for t in range(count)]
        if places:
            index = _sendable(places, at).to(at, non_blocking=True)
            slots.labels.view(-1).index_copy_(0, index, batch.labels.to(at, non_blocking=True))
            masks = batch.masks.to(at, non_blocking=True).view(torch.uint8)
            slots.masks.flatten(0, 1).index_copy_(0, index, masks)
        self.divisors.copy_(torch.stack(divisors))
        for rate, group in zip(self.rates, self.work.plain_optimizer.param_groups, strict=True):
            rate.fill_(float(group["lr"]))
        return slots

    def _record(self, slots: Slots, number: int) -> None:
        """A graph of the step, which is not run by that."""
        self.work.plain_optimizer.zero_grad(set_to_none=True)
        # Errors of this thread only: the loader's thread pins memory meanwhile, which in a recording is forbidden.
        how: Any = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
        try:
            graph = torch.cuda.CUDAGraph()
            with self._capturable(), torch.cuda.graph(graph, **how):
                loss = self._learn(slots, [])
                self._apply()
        except RuntimeError as error:
            if ran_out(error) or (error.__context__ is not None and ran_out(error.__context__)):
                raise  # the end of a recording that failed hides why it did
            self._free_generator()
            self._give_up(error)
        else:
            self.graphs[number] = graph, loss

    def _launch(self, slots: Slots, counts: list[int]) -> Tensor:
        """The step launch by launch."""
        try:
            loss = self._learn(slots, counts)
        except RuntimeError as error:
            if ran_out(error) or isinstance(error, torch.AcceleratorError) or self.network is self.work.model.module:
                raise
            self._give_up(error)
            loss = self._learn(slots, counts)
        with self._capturable():
            self._apply()
        return loss

    def _learn(self, slots: Slots, counts: list[int]) -> Tensor:
        """Forward and backward; returns the loss. counts: see Padded; the kernel that matches reads the labels."""
        work = self.work
        work.plain_optimizer.zero_grad(set_to_none=True)
        with work.fabric.autocast():
            prediction = self.network(self._pixels(), every_layer=True)
        valid = self.valid.flatten(1).float()
        masks = slots.masks.flatten(2) * self.valid.flatten(1)[:, None]
        divisors = Divisors(*self.divisors.unbind())
        losses = work.criterion.losses(prediction, Padded(slots.labels, masks, valid, counts, divisors))
        losses.total.backward()  # type: ignore[no-untyped-call]
        return losses.total.detach()

    def _apply(self) -> None:
        """The gradients into the weights."""
        work = self.work
        if isinstance(work.fabric.strategy, Replicated):
            work.fabric.strategy.average(work.model)
        if (largest := work.spec.train.clip_grad_norm) > 0:
            nn.utils.clip_grad_norm_(work.model.parameters(), largest)
        work.plain_optimizer.step()

    def _pixels(self) -> Tensor:
        """Normalised images, padding exactly zero: what `loader.Normalize` does, from sizes on the device."""
        at, (height, width) = self.images.device, self.images.shape[2:]
        normalize = self.work.normalize
        mean = torch.stack([torch.full((), 255 * v, device=at) for v in normalize.mean]).view(1, 3, 1, 1)
        std = torch.stack([torch.full((), 255 * v, device=at) for v in normalize.std]).view(1, 3, 1, 1)
        rows = torch.arange(height, device=at) < self.sizes[:, :1]
        columns = torch.arange(width, device=at) < self.sizes[:, 1:]
        inside = rows[:, None, :, None] & columns[:, None, None]
        return torch.where(inside, (self.images.float() - mean) / std, 0.0)

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """The optimiser reads its rates from the device meanwhile; for schedules and checkpoints they stay numbers."""
        groups = self.work.plain_optimizer.param_groups
        kept = [(group["lr"], group["capturable"]) for group in groups]
        self.work.plain_optimizer._warned_capturable_if_run_uncaptured = True  # the steps to warm up are meant to
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"], group["capturable"] = rate, True
        try:
            yield
        finally:
            for group, (lr, capturable) in zip(groups, kept, strict=True):
                group["lr"], group["capturable"] = lr, capturable


def _sendable(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """As a tensor on the host, in memory from which a GPU can fetch it while the host goes on."""
    found = torch.tensor(numbers)
    return found.pin_memory() if device.type == "cuda" else found


def make(work: Run) -> tuple[StepGraph | None, str]:
    """The graph for a run, or None where the plain loop is needed; and what to say of it in the log."""
    if not fast.available(work.fabric.device):
        return None, ""
    if os.environ.get(fast.GRAPH) == "0":
        return None, f"kernels, but no CUDA graph ({fast.GRAPH}=0)"
    if work.fabric.world_size > 1 and not isinstance(work.fabric.strategy, Replicated):
        ddp = work.spec.train.distributed_strategy == "ddp"
        way = f" ({fast.GRAPH}=ddp: inside; never run on several GPUs)" if ddp else ""
        return None, f"kernels, but no CUDA graph: several processes share their gradients outside of one{way}"
    if work.fabric.world_size > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in work.model.module.modules()):
        return None, "kernels, but no CUDA graph: batch norms share their statistics in the middle of a step"
    if work.spec.train.accumulate_grad_batches > 1:
        return None, "kernels, but no CUDA graph: a step of several batches (train.accumulate_grad_batches) has none"
    if work.spec.train.precision == "fp16":
        return None, "kernels, but no CUDA graph: fp16 scales its loss on the host (train.precision=bf16 is faster)"
    crop = work.spec.dataset.augmentation.train_crop_size
    pixels = work.spec.dataset.train.batch_size * crop[0] * crop[1]
    compiled, why = fast.repays_compiling(fast.STEP, work.total - work.state.step, pixels)
    said = f"kernels and one CUDA graph a step; {'compiled' if compiled else 'not compiled'} ({why})"
    return StepGraph(work, compiled=compiled), said
