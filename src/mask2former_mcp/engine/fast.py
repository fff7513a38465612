"""The fast path on CUDA: which parts of the plain path are replaced, and when.

It is chosen by itself; M2F_FAST_PATH=0 switches all of it off, M2F_STEP_GRAPH=0 the CUDA graph of training steps only.
M2F_STEP_GRAPH=ddp lets several processes record their steps as well, the average of their gradients included: it was
never run on several GPUs and is therefore not chosen by itself.
M2F_COMPILE=always or =never decides about torch.compile, which otherwise is used when the run is long enough to repay
it. None of them is a key of the spec: they change how fast a result comes, not which. Triton is imported here, by the
functions that need it: machines without CUDA lack it.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mask2former_mcp.engine.criterion import Criterion
from mask2former_mcp.engine.model.pixel_decoder import DeformableAttention
from mask2former_mcp.engine.model.swin import WindowAttention
from mask2former_mcp.engine.scoring import Interpret, Interpreter

if TYPE_CHECKING:
    from mask2former_mcp.engine.model.swin import WindowKernel

SWITCH, GRAPH, COMPILE = "M2F_FAST_PATH", "M2F_STEP_GRAPH", "M2F_COMPILE"
CAPABILITY = (8, 0)  # of the oldest GPU that computes in bfloat16
LARGEST_WINDOW = 8  # its tokens fill a tile of the kernel
WINDOW_DIMS, SAMPLE_DIMS = (16, 32, 64, 128), (8, 16, 32, 64, 128)  # per head: powers of two
COMPILE_GAIN = 0.4  # of the time that a step or a prediction takes without it: measured for Swin-T at 640 x 640


@dataclass(frozen=True, slots=True)
class Work:
    """What is done again and again. cold: seconds that compiling takes, on 16 cores; each: seconds a pixel, of Swin-T
    on an H100. A larger backbone takes longer, so that compiling would repay it earlier than is reckoned here.
    """

    name: str
    cold: float
    each: float


STEP = Work("steps", cold=120.0, each=0.0095 / 640**2)
FORWARD = Work("predictions", cold=40.0, each=0.0020 / 640**2)


def available(device: torch.device) -> bool:
    """Whether the kernels can run on this device and nobody switched them off."""
    return (
        device.type == "cuda"
        and os.environ.get(SWITCH, "1") != "0"
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= CAPABILITY
    )


def graph_together() -> bool:
    """Whether several processes with the same network are to record their steps, which has to be asked for."""
    return os.environ.get(GRAPH) == "ddp"


def accelerate(model: nn.Module, device: torch.device) -> int:
    """Puts the kernels into every attention of the network that they fit; returns how many. No weight changes."""
    if not available(device):
        return 0
    from mask2former_mcp.engine.kernels import deformable

    replaced = 0
    for module in model.modules():
        if isinstance(module, WindowAttention):
            dim = module.proj.in_features // module.num_heads
            if module.window <= LARGEST_WINDOW and dim in WINDOW_DIMS:
                module.fused = _window_kernel()
                replaced += 1
        elif isinstance(module, DeformableAttention) and _joins(module):
            module.fused = deformable.attend
            replaced += 1
    return replaced


def allows_half_weights(model: nn.Module) -> bool:
    """Whether an accelerated network predicts as well with weights in half precision as under autocast.

    The kernel samples at places in float32. Without it places would be as coarse as the weights, pixels off. Batch
    norm's statistics in half precision were not tried.
    """
    sampled = all(m.fused is not None for m in model.modules() if isinstance(m, DeformableAttention))
    return sampled and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def _joins(attention: DeformableAttention) -> bool:
    """Whether its two small products can be made one: quantized weights cannot be put together."""
    linears = (attention.sampling_offsets, attention.attention_weights)
    plain = all(type(m) is nn.Linear and type(m.weight.data) is Tensor for m in linears)
    return plain and attention.value_proj.out_features // attention.num_heads in SAMPLE_DIMS


def criterion(plain: Criterion, device: torch.device, *, mask_dim: int) -> Criterion:
    """The same criterion with its matching on the device, where that is available and fits the mask embeddings."""
    if not available(device) or mask_dim not in (16, 32, 64, 128, 256):
        return plain
    from mask2former_mcp.engine.fused_criterion import FusedCriterion

    return FusedCriterion(**{field.name: getattr(plain, field.name) for field in fields(plain)})


def interpreter(plain: Interpret, device: torch.device) -> Interpret:
    """The same interpreter with what it asks of every pixel in a kernel, where that is available and fits."""
    if not available(device) or type(plain) is not Interpreter:
        return plain
    from mask2former_mcp.engine.fused_interpreter import FusedInterpreter
    from mask2former_mcp.engine.kernels import pixels

    if plain.model.mask_former.num_object_queries > pixels.MOST_QUERIES:
        return plain
    return FusedInterpreter(plain.model, plain.classes.things, plain.min_score)


def repays_compiling(work: Work, times: int, pixels: int) -> tuple[bool, str]:
    """Whether to compile for so many times so many pixels (batch x height x width), and why, for the log."""
    asked = os.environ.get(COMPILE, "")
    if asked in ("always", "never"):
        return asked == "always", f"{COMPILE}={asked}"
    saved = times * pixels * work.each * COMPILE_GAIN
    return saved > 2 * work.cold, (
        f"it takes some {work.cold / 60:.1f} minutes and saves about {saved / 60:.1f} in {times} {work.name}"
    )


def _window_kernel() -> WindowKernel:
    from mask2former_mcp.engine.kernels import window

    def attend(
        qkv: Tensor, padding: Tensor, table: Tensor, index: Tensor, heads: int, size: int, shift: int, scale: float
    ) -> Tensor:
        out: Tensor = window.attend(qkv, padding, window.tile_bias(table, index), heads, size, shift, scale)
        return out

    return attend
