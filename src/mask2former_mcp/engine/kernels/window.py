"""Swin's window attention on the map as it lies in memory: pad, roll, partition, bias, mask and all back in one kernel.

Liu et al., 2021, https://arxiv.org/abs/2103.14030. A window is a tile of TILE x TILE logits, so windows of up to 8 x 8
tokens fit; nothing but the output is stored.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, unflatten

from mask2former_mcp.engine.model.swin import BLOCKED, shift_mask

TILE = 64
WARPS = 4
PROGRAMS = 1056  # of the backward: 8 on each of an H100's 132 processors; each sums its windows' bias gradients
STAGES = 1  # Triton 3.6 pipelines the backward's loop wrongly at 2 and 3: gradients off by half, and no error
SIZES = ["height", "width", "padded_height", "padded_width"]


def reference(qkv: Tensor, padding: Tensor, bias: Tensor, heads: int, window: int, shift: int, scale: float) -> Tensor:
    """What `attend` computes, by cutting windows out. Same arguments."""
    height, width = qkv.shape[1:3]
    tall, wide = height + -height % window, width + -width % window
    x = padding.to(qkv.dtype).expand(qkv.shape[0], tall, wide, -1).clone()
    x[:, :height, :width] = qkv
    blocked = shift_mask(x[..., :1], window, shift) if shift else 0
    x = x.roll((-shift, -shift), (1, 2))
    rows, columns = tall // window, wide // window
    x = unflatten(unflatten(unflatten(x, 3, (3, heads, -1)), 2, (columns, window)), 1, (rows, window))
    q, k, v = x.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(2, 3).unbind(0)
    tokens = window * window
    logits = q @ k.transpose(-2, -1) * scale + bias[:, :tokens, :tokens].to(q.dtype) + blocked
    out = logits.softmax(-1) @ v
    out = unflatten(unflatten(out, 1, (rows, columns)), 4, (window, window)).permute(0, 1, 4, 2, 5, 3, 6)
    return out.flatten(5).flatten(3, 4).flatten(1, 2).roll((shift, shift), (1, 2))[:, :height, :width].contiguous()


def tile_bias(table: Tensor, index: Tensor) -> Tensor:
    """The bias table spread over a tile: table [R, heads], index [n, n] of its rows -> [heads, TILE, TILE].

    A product with one-hot rows, because the backward of a look-up adds thousands of gradients to each row by atomics.
    """
    spare = TILE - index.shape[0]
    rows = F.pad(index, (0, spare, 0, spare)).flatten()
    chosen = (rows[:, None] == torch.arange(table.shape[0], device=table.device)).to(table.dtype)
    with torch.autocast(table.device.type, enabled=False):
        return (chosen @ table).view(TILE, TILE, -1).permute(2, 0, 1).contiguous()


@torch.library.custom_op("mask2former::window", mutates_args=())
def attend(qkv: Tensor, padding: Tensor, bias: Tensor, heads: int, window: int, shift: int, scale: float) -> Tensor:
    """qkv [B, h, w, 3 C] (q, k, v; each heads x d) -> [B, h, w, C].

    padding [3 C]: what stands in padded places (the bias of the projection); bias [heads, TILE, TILE].
    """
    qkv = qkv.contiguous()
    batch, height, width, channels = qkv.shape
    tall, wide = height + -height % window, width + -width % window
    out = qkv.new_empty(batch, height, width, channels // 3)
    _forward[(tall // window * (wide // window), heads, batch)](
        qkv,
        padding,
        bias,
        out,
        height,
        width,
        tall,
        wide,
        scale,
        HEADS=heads,
        DIM=channels // 3 // heads,
        WINDOW=window,
        SHIFT=shift,
        FOREIGN=BLOCKED,
        PRODUCT=_product(qkv),
        num_warps=WARPS,
    )
    return out


@attend.register_fake
def _(qkv: Tensor, padding: Tensor, bias: Tensor, heads: int, window: int, shift: int, scale: float) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


@torch.library.custom_op("mask2former::window_backward", mutates_args=())
def attend_backward(
    qkv: Tensor, padding: Tensor, bias: Tensor, grad: Tensor, heads: int, window: int, shift: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, and in float32 of padding and bias."""
    qkv, grad = qkv.contiguous(), grad.contiguous()
    batch, height, width, channels = qkv.shape
    tall, wide = height + -height % window, width + -width % window
    windows = batch * (tall // window) * (wide // window)
    each = max(1, -(-windows * heads // PROGRAMS))
    programs = -(-windows // each)
    grad_qkv = torch.empty_like(qkv)
    grad_padding = torch.zeros(programs, channels, device=qkv.device)
    grad_bias = torch.empty(programs, heads, TILE, TILE, device=qkv.device)
    _backward[(programs, heads)](
        qkv,
        padding,
        bias,
        grad,
        grad_qkv,
        grad_padding,
        grad_bias,
        height,
        width,
        tall,
        wide,
        windows,
        each,
        scale,
        HEADS=heads,
        DIM=channels // 3 // heads,
        WINDOW=window,
        SHIFT=shift,
        FOREIGN=BLOCKED,
        PRODUCT=_product(qkv),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return grad_qkv, grad_padding.sum(0), grad_bias.sum(0)


@attend_backward.register_fake
def _(
    qkv: Tensor, padding: Tensor, bias: Tensor, grad: Tensor, heads: int, window: int, shift: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float32
    return (
        qkv.new_empty(qkv.shape),
        padding.new_empty(padding.shape, dtype=wide),
        bias.new_empty(bias.shape, dtype=wide),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.how = inputs[3:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, padding, bias = ctx.saved_tensors
    grad_qkv, grad_padding, grad_bias = attend_backward(qkv, padding, bias, grad, *ctx.how)
    return grad_qkv, grad_padding.to(padding.dtype), grad_bias.to(bias.dtype), None, None, None, None


attend.register_autograd(_differentiate, setup_context=_keep)


def _product(like: Tensor) -> str:
    """How float32 products are made: exactly. Half precision has its own units and ignores this."""
    return "ieee" if like.dtype == torch.float32 else "tf32"


@triton.jit
def _tokens(window, height, width, padded_height, padded_width, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """Of a window's TILE rows: place on the map, in the window at all, on the map, and region of the rolled map."""
    i = tl.arange(0, 64)
    columns = padded_width // WINDOW
    ys = (window // columns) * WINDOW + i // WINDOW
    xs = (window % columns) * WINDOW + i % WINDOW
    y = (ys + SHIFT) % padded_height
    x = (xs + SHIFT) % padded_width
    used = i < WINDOW * WINDOW
    real = used & (y < height) & (x < width)
    down = tl.where(ys >= padded_height - WINDOW, 1, 0) + tl.where(ys >= padded_height - SHIFT, 1, 0)
    across = tl.where(xs >= padded_width - WINDOW, 1, 0) + tl.where(xs >= padded_width - SHIFT, 1, 0)
    return y * width + x, used, real, down * 3 + across


@triton.jit
def _shares(q, k, bias, used, region, scale, SHIFT: tl.constexpr, FOREIGN: tl.constexpr, PRODUCT: tl.constexpr):
    """Softmax over a window's tokens."""
    s = tl.dot(q, tl.trans(k), input_precision=PRODUCT) * scale + bias
    if SHIFT > 0:
        s += tl.where(region[:, None] == region[None, :], 0.0, FOREIGN)
    s = tl.where(used[None, :], s, -1e30)
    p = tl.exp(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit(do_not_specialize=SIZES)
def _forward(
    qkv,
    padding,
    bias,
    out,
    height,
    width,
    padded_height,
    padded_width,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    FOREIGN: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    C: tl.constexpr = HEADS * DIM
    head = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    c = tl.arange(0, DIM)
    i = tl.arange(0, 64)
    place, used, real, region = _tokens(tl.program_id(0), height, width, padded_height, padded_width, WINDOW, SHIFT)
    base = qkv + b * height * width * 3 * C + head * DIM
    at = (place * (3 * C))[:, None] + c[None, :]
    empty = (used & (real == 0))[:, None]
    q = tl.load(base + at, real[:, None], 0.0)
    k = tl.load(base + C + at, real[:, None], 0.0)
    v = tl.load(base + 2 * C + at, real[:, None], 0.0)
    k = tl.where(empty, tl.load(padding + C + head * DIM + c)[None, :].to(k.dtype), k)
    v = tl.where(empty, tl.load(padding + 2 * C + head * DIM + c)[None, :].to(v.dtype), v)
    added = tl.load(bias + head * 4096 + i[:, None] * 64 + i[None, :]).to(tl.float32)
    p = _shares(q, k, added, used, region, scale, SHIFT, FOREIGN, PRODUCT)
    o = tl.dot(p.to(v.dtype), v, input_precision=PRODUCT)
    to = b * height * width * C + (place * C)[:, None] + head * DIM + c[None, :]
    tl.store(out + to, o.to(out.dtype.element_ty), real[:, None])


@triton.jit(do_not_specialize=[*SIZES, "windows", "each"])
def _backward(
    qkv,
    padding,
    bias,
    grad,
    grad_qkv,
    grad_padding,
    grad_bias,
    height,
    width,
    padded_height,
    padded_width,
    windows,
    each,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    FOREIGN: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    C: tl.constexpr = HEADS * DIM
    head = tl.program_id(1)
    c = tl.arange(0, DIM)
    i = tl.arange(0, 64)
    in_image = (padded_height // WINDOW) * (padded_width // WINDOW)
    added = tl.load(bias + head * 4096 + i[:, None] * 64 + i[None, :]).to(tl.float32)
    empty_k = tl.load(padding + C + head * DIM + c)
    empty_v = tl.load(padding + 2 * C + head * DIM + c)
    sum_bias = tl.zeros([64, 64], tl.float32)
    sum_k = tl.zeros([DIM], tl.float32)
    sum_v = tl.zeros([DIM], tl.float32)
    first = tl.program_id(0) * each
    for window in range(first, tl.minimum(first + each, windows)):
        b = (window // in_image).to(tl.int64)
        place, used, real, region = _tokens(
            window % in_image, height, width, padded_height, padded_width, WINDOW, SHIFT
        )
        at = b * height * width * 3 * C + head * DIM + (place * (3 * C))[:, None] + c[None, :]
        empty = (used & (real == 0))[:, None]
        q = tl.load(qkv + at, real[:, None], 0.0)
        k = tl.load(qkv + C + at, real[:, None], 0.0)
        v = tl.load(qkv + 2 * C + at, real[:, None], 0.0)
        k = tl.where(empty, empty_k[None, :].to(k.dtype), k)
        v = tl.where(empty, empty_v[None, :].to(v.dtype), v)
        of = b * height * width * C + (place * C)[:, None] + head * DIM + c[None, :]
        g = tl.load(grad + of, real[:, None], 0.0)
        p = _shares(q, k, added, used, region, scale, SHIFT, FOREIGN, PRODUCT)
        dv = tl.dot(tl.trans(p.to(g.dtype)), g, input_precision=PRODUCT)
        dp = tl.dot(g, tl.trans(v), input_precision=PRODUCT)
        ds = p * (dp - tl.sum(dp * p, 1)[:, None])
        sum_bias += ds
        scaled = (ds * scale).to(q.dtype)
        dq = tl.dot(scaled, k, input_precision=PRODUCT)
        dk = tl.dot(tl.trans(scaled), q, input_precision=PRODUCT)
        kind = grad_qkv.dtype.element_ty
        tl.store(grad_qkv + at, dq.to(kind), real[:, None])
        tl.store(grad_qkv + C + at, dk.to(kind), real[:, None])
        tl.store(grad_qkv + 2 * C + at, dv.to(kind), real[:, None])
        sum_k += tl.sum(tl.where(empty, dk, 0.0), 0)
        sum_v += tl.sum(tl.where(empty, dv, 0.0), 0)
    mine = tl.program_id(0)
    tl.store(grad_bias + (mine * HEADS + head) * 4096 + i[:, None] * 64 + i[None, :], sum_bias)
    tl.store(grad_padding + mine * 3 * C + C + head * DIM + c, sum_k)
    tl.store(grad_padding + mine * 3 * C + 2 * C + head * DIM + c, sum_v)
