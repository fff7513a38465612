"""Inference on CUDA by graphs: a forward of a shape that comes again is one launch instead of some thousand."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mask2former_mcp.engine import fast
from mask2former_mcp.engine.model.network import Prediction

SHAPES = 8  # that are kept as graphs; images of other shapes run launch by launch
SEEN = 2  # times that a shape must have come before it is worth recording


class ForwardGraph(nn.Module):
    """A network in eval mode, set up by `fabric`. What it gives stays in the precision that it is computed in."""

    def __init__(self, network: nn.Module, fabric: Fabric) -> None:
        super().__init__()
        self.network, self.fabric = network, fabric
        self.dtype = next(network.parameters()).dtype
        self._seen: dict[torch.Size, int] = {}
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Prediction]] = {}
        self._pool: Any = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Prediction:
        """images [B, 3, H, W], on the device -> the last layer's Prediction."""
        shape = images.shape
        if shape in self._graphs:
            graph, buffer, prediction = self._graphs[shape]
            buffer.copy_(images)
            graph.replay()
            return _own(prediction)
        images = images.to(self.dtype)
        self._seen[shape] = self._seen.get(shape, 0) + 1
        if self._seen[shape] <= SEEN or len(self._graphs) >= SHAPES:
            return self._predict(images)
        return self._record(images)

    def _record(self, images: Tensor) -> Prediction:
        buffer, graph = images.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            prediction = self._predict(buffer)
        self._graphs[images.shape] = graph, buffer, prediction
        # What this process has made up to here stays, so that Python's collector need not look at it again and again
        # while outcomes come and go: with a compiler in memory that takes more than a second.
        gc.collect()
        gc.freeze()
        graph.replay()
        return _own(prediction)

    def _predict(self, images: Tensor) -> Prediction:
        with self.fabric.autocast():
            found: Prediction = self.network(images, every_layer=False)
        return found


def _own(prediction: Prediction) -> Prediction:
    """One that the graph's next replay does not overwrite."""
    return Prediction(*(part.clone() for part in prediction))


def possible(network: nn.Module, device: torch.device) -> bool:
    """Whether forwards can be recorded. Quantized weights were not tried in a graph."""
    return fast.available(device) and all(type(p.data) is Tensor for p in network.parameters())


def over(
    network: nn.Module, fabric: Fabric, *, rooms: Sequence[tuple[int, int] | None], batch: int
) -> tuple[nn.Module, str]:
    """The network on its device, its forwards compiled and recorded where that is possible; and what to say of it in
    the log. Its kernels it has already (fast.accelerate).

    rooms: (height, width) of each batch of `batch` images that will come, None where it is not known. Each size would
    be compiled anew, which is only thought of where there is one.
    """
    if not possible(network, fabric.device):
        return fabric.setup_module(network), ""
    compiled, why = compiling(rooms, batch)
    if compiled:
        network.compile(dynamic=False)
    half = {"16-true": ", weights in fp16", "bf16-true": ", weights in bf16"}.get(
        fabric.strategy.precision.precision, ""
    )
    said = f"fast path: kernels and CUDA graphs{half}; {'compiled' if compiled else 'not compiled'} ({why})"
    fabric.setup_module(network.eval())  # moves it, and its weights to their precision
    return ForwardGraph(network, fabric), said


def compiling(rooms: Sequence[tuple[int, int] | None], batch: int) -> tuple[bool, str]:
    """Whether to compile, and why, for the log."""
    sizes = set(rooms)
    one = next(iter(sizes)) if len(sizes) == 1 else None
    compiled, why = fast.repays_compiling(fast.FORWARD, len(rooms), batch * one[0] * one[1] if one else 0)
    return compiled, why if one or compiled else f"images of {len(sizes)} sizes, each of which would be compiled anew"
