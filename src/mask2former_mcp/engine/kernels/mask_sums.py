"""Sums over the pixels of the matched masks, from which focal and dice loss follow; only the logits are kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def reference(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """What `mask_sums` computes, in PyTorch. Same arguments; computes in the precision of its inputs."""
    t, seen = masks[:, None].to(logits.dtype), valid[:, None, None].to(logits.dtype)
    p = logits.sigmoid()
    wrong = p + t - 2 * p * t
    focal = (F.softplus(logits) - logits * t) * wrong.square() * (0.75 - 0.5 * t) * seen
    return torch.stack([focal.sum(-1), (p * t).sum(-1), (p * seen).sum(-1)], -1)


@torch.library.custom_op("mask2former::mask_sums", mutates_args=())
def mask_sums(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Focal loss (alpha 0.25, gamma 2), p x mask and p x valid, each summed over pixels: [B, L, T, 3] float32.

    logits [B, L, T, N]; masks [B, T, N] 0 or 1 (0 where invalid); valid [B, N] 0 or 1.
    """
    logits, masks, valid = logits.contiguous(), masks.contiguous(), valid.contiguous()
    batch, layers, slots, pixels = logits.shape
    out = torch.empty(batch, layers, slots, 3, device=logits.device)
    _forward[(batch * layers * slots,)](logits, masks, valid, out, pixels, layers, slots, BLOCK=BLOCK)
    return out


@mask_sums.register_fake
def _(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    return logits.new_empty(*logits.shape[:3], 3, dtype=torch.float32)


@torch.library.custom_op("mask2former::mask_sums_backward", mutates_args=())
def mask_sums_backward(logits: Tensor, masks: Tensor, valid: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the logits; grad [B, L, T, 3]."""
    logits, masks, valid, grad = (x.contiguous() for x in (logits, masks, valid, grad))
    batch, layers, slots, pixels = logits.shape
    out = torch.empty_like(logits)
    grid = (batch * layers * slots, triton.cdiv(pixels, BLOCK))
    _backward[grid](logits, masks, valid, grad, out, pixels, layers, slots, BLOCK=BLOCK)
    return out


@mask_sums_backward.register_fake
def _(logits: Tensor, masks: Tensor, valid: Tensor, grad: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return mask_sums_backward(*ctx.saved_tensors, grad), None, None


mask_sums.register_autograd(_differentiate, setup_context=_keep)


@triton.jit(do_not_specialize=["pixels", "layers", "slots"])
def _forward(logits, masks, valid, out, pixels, layers, slots, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    b = row // (layers * slots)
    focal = tl.zeros([BLOCK], tl.float32)
    overlap = tl.zeros([BLOCK], tl.float32)
    covered = tl.zeros([BLOCK], tl.float32)
    for start in range(0, pixels, BLOCK):
        n = start + tl.arange(0, BLOCK)
        inside = n < pixels
        x = tl.load(logits + row * pixels + n, inside, 0.0).to(tl.float32)
        t = tl.load(masks + (b * slots + row % slots) * pixels + n, inside, 0).to(tl.float32)
        seen = tl.load(valid + b * pixels + n, inside, 0).to(tl.float32)
        small = tl.exp(-tl.abs(x))
        p = tl.where(x >= 0, 1 / (1 + small), small / (1 + small))
        entropy = tl.log(1 + small) + tl.maximum(x, 0.0) - x * t
        wrong = p + t - 2 * p * t
        focal += entropy * wrong * wrong * (0.75 - 0.5 * t) * seen
        overlap += p * t
        covered += p * seen
    tl.store(out + row * 3, tl.sum(focal, 0))
    tl.store(out + row * 3 + 1, tl.sum(overlap, 0))
    tl.store(out + row * 3 + 2, tl.sum(covered, 0))


@triton.jit(do_not_specialize=["pixels", "layers", "slots"])
def _backward(logits, masks, valid, grad, out, pixels, layers, slots, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    b = row // (layers * slots)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < pixels
    x = tl.load(logits + row * pixels + n, inside, 0.0).to(tl.float32)
    t = tl.load(masks + (b * slots + row % slots) * pixels + n, inside, 0).to(tl.float32)
    seen = tl.load(valid + b * pixels + n, inside, 0).to(tl.float32)
    small = tl.exp(-tl.abs(x))
    p = tl.where(x >= 0, 1 / (1 + small), small / (1 + small))
    slope = p * (1 - p)
    entropy = tl.log(1 + small) + tl.maximum(x, 0.0) - x * t
    wrong = p + t - 2 * p * t
    focal = ((p - t) * wrong * wrong + entropy * 2 * wrong * slope * (1 - 2 * t)) * (0.75 - 0.5 * t) * seen
    by_focal = tl.load(grad + row * 3)
    by_overlap = tl.load(grad + row * 3 + 1)
    by_covered = tl.load(grad + row * 3 + 2)
    g = by_focal * focal + slope * (by_overlap * t + by_covered * seen)
    tl.store(out + row * pixels + n, g.to(out.dtype.element_ty), inside)
