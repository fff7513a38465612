"""Multi-scale deformable attention: softmax, sampling places, bilinear samples and their sum in one kernel.

Zhu et al., 2021, https://arxiv.org/abs/2010.04159. Nothing but the output is stored: the backward computes the places
again, and adds the gradient of the values with atomics, in float32 because bfloat16 sums lose a percent.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mask2former_mcp.engine.model.pixel_decoder import LEVELS, POINTS, Geometry, sample

QUERIES, WARPS = 32, 4  # of one program
SIZES = ["h0", "w0", "h1", "w1", "h2", "w2", "tokens"]  # vary from image to image: one compiled kernel serves all


def reference(value: Tensor, places: Tensor, sizes: list[int]) -> Tensor:
    """What `attend` computes, in the plain path's operations. Same arguments."""
    batch, tokens, heads, _ = value.shape
    split = heads * LEVELS * POINTS * 2
    offsets = places[..., :split].view(batch, tokens, heads, LEVELS, POINTS, 2)
    weights = places[..., split:].view(batch, tokens, heads, LEVELS * POINTS).softmax(-1)
    geometry = Geometry.of(list(zip(sizes[::2], sizes[1::2], strict=True)), like=value)
    return sample(value, offsets, weights, geometry).view_as(value)


@torch.library.custom_op("mask2former::deformable", mutates_args=())
def attend(value: Tensor, places: Tensor, sizes: list[int]) -> Tensor:
    """Each of the S tokens attends to LEVELS x POINTS places of the maps that the tokens themselves form.

    value [B, S, heads, d]; places [B, S, heads * LEVELS * POINTS * 3]: offsets in pixels (x, y) of all heads, then
    attention logits; sizes (h, w) of the three maps one after the other. -> [B, S, heads, d].
    """
    value, places = value.contiguous(), places.contiguous()
    batch, tokens, heads, dim = value.shape
    out = torch.empty_like(value)
    grid = (triton.cdiv(tokens, QUERIES), heads, batch)
    _forward[grid](
        value, places, out, *sizes, tokens, HEADS=heads, DIM=dim, POINTS=POINTS, QUERIES=QUERIES, num_warps=WARPS
    )
    return out


@attend.register_fake
def _(value: Tensor, places: Tensor, sizes: list[int]) -> Tensor:
    return value.new_empty(value.shape)


@torch.library.custom_op("mask2former::deformable_backward", mutates_args=())
def attend_backward(
    value: Tensor, places: Tensor, out: Tensor, grad: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of the values (float32) and of the places."""
    value, places, grad = value.contiguous(), places.contiguous(), grad.contiguous()
    batch, tokens, heads, dim = value.shape
    grad_value = torch.zeros(value.shape, device=value.device, dtype=torch.float32)
    grad_places = torch.empty_like(places)
    grid = (triton.cdiv(tokens, QUERIES), heads, batch)
    _backward[grid](
        value,
        places,
        out,
        grad,
        grad_value,
        grad_places,
        *sizes,
        tokens,
        HEADS=heads,
        DIM=dim,
        POINTS=POINTS,
        QUERIES=QUERIES,
        num_warps=WARPS,
    )
    return grad_value, grad_places


@attend_backward.register_fake
def _(value: Tensor, places: Tensor, out: Tensor, grad: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    return value.new_empty(value.shape, dtype=torch.float32), places.new_empty(places.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output)
    ctx.sizes = inputs[2]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    value, places, out = ctx.saved_tensors
    grad_value, grad_places = attend_backward(value, places, out, grad, ctx.sizes)
    return grad_value.to(value.dtype), grad_places, None


attend.register_autograd(_differentiate, setup_context=_keep)


@triton.jit
def _own_place(n, h0, w0, h1, w1, h2, w2):
    """(x, y) of tokens n on their own map, 0..1."""
    second = h0 * w0
    third = second + h1 * w1
    i = tl.where(n < second, n, tl.where(n < third, n - second, n - third))
    w = tl.where(n < second, w0, tl.where(n < third, w1, w2))
    h = tl.where(n < second, h0, tl.where(n < third, h1, h2))
    return ((i % w) + 0.5) / w, ((i // w) + 0.5) / h


@triton.jit
def _map(level: tl.constexpr, h0, w0, h1, w1, h2, w2):
    """Height, width and first token of a level."""
    if level == 0:
        return h0, w0, 0
    elif level == 1:  # noqa: RET505 - Triton compiles the chosen branch only, and wants them to be branches
        return h1, w1, h0 * w0
    else:
        return h2, w2, h0 * w0 + h1 * w1


@triton.jit(do_not_specialize=SIZES)
def _forward(
    value,
    places,
    out,
    h0,
    w0,
    h1,
    w1,
    h2,
    w2,
    tokens,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    POINTS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    ALL: tl.constexpr = 3 * POINTS
    n = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    there = n < tokens
    c = tl.arange(0, DIM)
    value += b * tokens * HEADS * DIM + head * DIM
    row = places + (b * tokens + n) * (HEADS * ALL * 3)
    offset = row + head * ALL * 2
    logit = row + HEADS * ALL * 2 + head * ALL
    own_x, own_y = _own_place(n, h0, w0, h1, w1, h2, w2)
    largest = tl.full([QUERIES], -1e30, tl.float32)
    for p in tl.static_range(ALL):
        largest = tl.maximum(largest, tl.load(logit + p, there, 0.0).to(tl.float32))
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, DIM], tl.float32)
    for level in tl.static_range(3):
        h, w, first = _map(level, h0, w0, h1, w1, h2, w2)
        for point in tl.static_range(POINTS):
            k = level * POINTS + point
            share = tl.exp(tl.load(logit + k, there, 0.0).to(tl.float32) - largest)
            total += share
            x = own_x * w + tl.load(offset + 2 * k, there, 0.0).to(tl.float32) - 0.5
            y = own_y * h + tl.load(offset + 2 * k + 1, there, 0.0).to(tl.float32) - 0.5
            left = tl.floor(x)
            top = tl.floor(y)
            fx = x - left
            fy = y - top
            for corner in tl.static_range(4):
                xi = left.to(tl.int32) + corner % 2
                yi = top.to(tl.int32) + corner // 2
                inside = there & (xi >= 0) & (xi < w) & (yi >= 0) & (yi < h)
                along_x = fx if corner % 2 == 1 else 1 - fx
                along_y = fy if corner // 2 == 1 else 1 - fy
                at = ((first + yi * w + xi) * (HEADS * DIM))[:, None] + c[None, :]
                found = tl.load(value + at, inside[:, None], 0.0).to(tl.float32)
                acc += (along_x * along_y * share)[:, None] * found
    acc = acc / total[:, None]
    at = ((b * tokens + n) * (HEADS * DIM) + head * DIM)[:, None] + c[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), there[:, None])


@triton.jit(do_not_specialize=SIZES)
def _backward(
    value,
    places,
    out,
    grad,
    grad_value,
    grad_places,
    h0,
    w0,
    h1,
    w1,
    h2,
    w2,
    tokens,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    POINTS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    ALL: tl.constexpr = 3 * POINTS
    n = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    there = n < tokens
    c = tl.arange(0, DIM)
    value += b * tokens * HEADS * DIM + head * DIM
    grad_value += b * tokens * HEADS * DIM + head * DIM
    row = (b * tokens + n) * (HEADS * ALL * 3)
    offset = row + head * ALL * 2
    logit = row + HEADS * ALL * 2 + head * ALL
    at = ((b * tokens + n) * (HEADS * DIM) + head * DIM)[:, None] + c[None, :]
    g = tl.load(grad + at, there[:, None], 0.0).to(tl.float32)
    mean = tl.sum(g * tl.load(out + at, there[:, None], 0.0).to(tl.float32), 1)  # of the samples' gradients
    own_x, own_y = _own_place(n, h0, w0, h1, w1, h2, w2)
    largest = tl.full([QUERIES], -1e30, tl.float32)
    for p in tl.static_range(ALL):
        largest = tl.maximum(largest, tl.load(places + logit + p, there, 0.0).to(tl.float32))
    total = tl.zeros([QUERIES], tl.float32)
    for p in tl.static_range(ALL):
        total += tl.exp(tl.load(places + logit + p, there, 0.0).to(tl.float32) - largest)
    for level in tl.static_range(3):
        h, w, first = _map(level, h0, w0, h1, w1, h2, w2)
        for point in range(POINTS):  # unrolled, it would compile for ten seconds and run no faster
            k = level * POINTS + point
            share = tl.exp(tl.load(places + logit + k, there, 0.0).to(tl.float32) - largest) / total
            x = own_x * w + tl.load(places + offset + 2 * k, there, 0.0).to(tl.float32) - 0.5
            y = own_y * h + tl.load(places + offset + 2 * k + 1, there, 0.0).to(tl.float32) - 0.5
            left = tl.floor(x)
            top = tl.floor(y)
            fx = x - left
            fy = y - top
            by_share = tl.zeros([QUERIES], tl.float32)
            by_x = tl.zeros([QUERIES], tl.float32)
            by_y = tl.zeros([QUERIES], tl.float32)
            for corner in tl.static_range(4):
                xi = left.to(tl.int32) + corner % 2
                yi = top.to(tl.int32) + corner // 2
                inside = there & (xi >= 0) & (xi < w) & (yi >= 0) & (yi < h)
                along_x = fx if corner % 2 == 1 else 1 - fx
                along_y = fy if corner // 2 == 1 else 1 - fy
                place = ((first + yi * w + xi) * (HEADS * DIM))[:, None] + c[None, :]
                d = tl.sum(g * tl.load(value + place, inside[:, None], 0.0).to(tl.float32), 1)
                by_share += along_x * along_y * d
                by_x += (along_y if corner % 2 == 1 else -along_y) * d
                by_y += (along_x if corner // 2 == 1 else -along_x) * d
                part = (share * along_x * along_y)[:, None] * g
                tl.atomic_add(grad_value + place, part, inside[:, None], sem="relaxed")
            kind = grad_places.dtype.element_ty
            tl.store(grad_places + offset + 2 * k, (share * by_x).to(kind), there)
            tl.store(grad_places + offset + 2 * k + 1, (share * by_y).to(kind), there)
            tl.store(grad_places + logit + k, (share * (by_share - mean)).to(kind), there)
