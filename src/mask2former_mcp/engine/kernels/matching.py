"""Matching on the device: cost sums without ever storing the masks of all queries, and the Hungarian method.

With these the host need not look at anything until the loss is read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

SPLITS = 8  # programs that share the pixels of a block of queries
LEAST_SLOTS = 16  # what the matrix units take


def cost_sums_reference(embeddings: Tensor, features: Tensor, masks: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    """What `cost_sums` computes, all logits formed. Same arguments; computes in the precision of its inputs."""
    x = embeddings @ features.transpose(1, 2)
    masks, valid = masks.to(x.dtype), valid.to(x.dtype)
    p, soft = x.sigmoid(), F.softplus(x)
    negative = 0.75 * p.square() * soft
    positive = 0.25 * (1 - p).square() * (soft - x)
    across = masks.transpose(1, 2)
    return (
        (positive - negative) @ across,
        p @ across,
        (negative @ valid[..., None]).squeeze(2),
        (p @ valid[..., None]).squeeze(2),
    )


@torch.library.custom_op("mask2former::cost_sums", mutates_args=())
def cost_sums(
    embeddings: Tensor, features: Tensor, masks: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over pixels, float32: of (positive - negative) focal cost x mask, p x mask, negative x valid, p x valid.

    embeddings [B, R, D] of R queries (all layers'), features [B, N, D], masks [B, T, N] 0 or 1 (0 where invalid),
    valid [B, N] 0 or 1 -> [B, R, T] twice, [B, R] twice. Focal with alpha 0.25, gamma 2, as in the criterion.
    """
    embeddings, features, masks, valid = (x.contiguous() for x in (embeddings, features, masks, valid))
    batch, rows, dim = embeddings.shape
    pixels, slots = features.shape[1], masks.shape[1]
    exact = embeddings.dtype == torch.float32
    block, step, warps, stages = (32, 32, 4, 1) if exact else (128, 64, 8, 3)
    each = -(-pixels // (SPLITS * step)) * step
    splits = -(-pixels // each)
    kept = max(LEAST_SLOTS, triton.next_power_of_2(slots))
    focal = torch.empty(splits, batch, rows, kept, device=embeddings.device)
    overlap = torch.empty_like(focal)
    negative = torch.empty(splits, batch, rows, device=embeddings.device)
    covered = torch.empty_like(negative)
    _cost_sums[(triton.cdiv(rows, block), batch, splits)](
        embeddings,
        features,
        masks,
        valid,
        focal,
        overlap,
        negative,
        covered,
        rows,
        pixels,
        slots,
        each,
        DIM=dim,
        SLOTS=kept,
        BLOCK=block,
        STEP=step,
        PRODUCT="ieee" if exact else "tf32",
        num_warps=warps,
        num_stages=stages,
    )
    return focal.sum(0)[..., :slots], overlap.sum(0)[..., :slots], negative.sum(0), covered.sum(0)


@cost_sums.register_fake
def _(embeddings: Tensor, features: Tensor, masks: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, rows, _ = embeddings.shape
    pair = embeddings.new_empty(batch, rows, masks.shape[1], dtype=torch.float32)
    single = embeddings.new_empty(batch, rows, dtype=torch.float32)
    return pair, torch.empty_like(pair), single, torch.empty_like(single)


@torch.library.custom_op("mask2former::assign", mutates_args=())
def assign(cost: Tensor, counts: Tensor) -> Tensor:
    """The cheapest assignment of each problem: cost [P, T, Q] float32, finite; the first counts [P] rows take part.

    -> [P, T] int32, the column of each row, -1 for the others. Needs counts <= Q: a row without a column never ends.
    Shortest augmenting paths (Jonker and Volgenant, 1987), one warp a problem; its PyTorch reference is SciPy's.
    """
    cost = cost.contiguous()
    problems, rows, columns = cost.shape
    kept = triton.next_power_of_2(rows)
    out = torch.empty(problems, rows, dtype=torch.int32, device=cost.device)
    _assign[(problems,)](
        cost, counts.int(), out, rows, columns, ROWS=kept, COLUMNS=triton.next_power_of_2(columns), num_warps=1
    )
    return out


@assign.register_fake
def _(cost: Tensor, counts: Tensor) -> Tensor:
    return cost.new_empty(cost.shape[:2], dtype=torch.int32)


@triton.jit(do_not_specialize=["rows", "pixels", "slots", "each"])
def _cost_sums(
    embeddings,
    features,
    masks,
    valid,
    focal,
    overlap,
    negative,
    covered,
    rows,
    pixels,
    slots,
    each,
    DIM: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    c = tl.arange(0, DIM)
    t = tl.arange(0, SLOTS)
    there = m < rows
    e = tl.load(embeddings + (b * rows + m)[:, None] * DIM + c[None, :], there[:, None], 0.0)
    sum_focal = tl.zeros([BLOCK, SLOTS], tl.float32)
    sum_overlap = tl.zeros([BLOCK, SLOTS], tl.float32)
    sum_negative = tl.zeros([BLOCK], tl.float32)
    sum_covered = tl.zeros([BLOCK], tl.float32)
    first = part * each
    for start in range(first, tl.minimum(first + each, pixels), STEP):
        n = start + tl.arange(0, STEP)
        inside = n < pixels
        f = tl.load(features + (b * pixels + n)[:, None] * DIM + c[None, :], inside[:, None], 0.0)
        seen = tl.load(valid + b * pixels + n, inside, 0).to(tl.float32)[None, :]
        at = (b * slots + t)[:, None] * pixels + n[None, :]
        mask = tl.trans(tl.load(masks + at, (t < slots)[:, None] & inside[None, :], 0).to(f.dtype))
        x = tl.dot(e, tl.trans(f), input_precision=PRODUCT)
        small = tl.exp(-tl.abs(x))
        log = tl.log(1 + small)
        p = tl.where(x >= 0, 1 / (1 + small), small / (1 + small))
        no = 0.75 * p * p * (log + tl.maximum(x, 0.0)) * seen
        yes = 0.25 * (1 - p) * (1 - p) * (log + tl.maximum(-x, 0.0)) * seen
        p = p * seen
        sum_focal += tl.dot((yes - no).to(f.dtype), mask, input_precision=PRODUCT)
        sum_overlap += tl.dot(p.to(f.dtype), mask, input_precision=PRODUCT)
        sum_negative += tl.sum(no, 1)
        sum_covered += tl.sum(p, 1)
    to = (part * tl.num_programs(1) + b) * rows + m
    tl.store(focal + to[:, None] * SLOTS + t[None, :], sum_focal, there[:, None])
    tl.store(overlap + to[:, None] * SLOTS + t[None, :], sum_overlap, there[:, None])
    tl.store(negative + to, sum_negative, there)
    tl.store(covered + to, sum_covered, there)


@triton.jit(do_not_specialize=["rows", "columns"])
def _assign(cost, counts, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    problem = tl.program_id(0)
    cost += problem * rows * columns
    count = tl.load(counts + problem)
    j = tl.arange(0, COLUMNS)
    i = tl.arange(0, ROWS)
    real = j < columns
    INFINITE: tl.constexpr = 1e30
    u = tl.zeros([ROWS], tl.float32)  # what a row pays
    v = tl.zeros([COLUMNS], tl.float32)  # what a column gives
    row_of = tl.full([COLUMNS], -1, tl.int32)
    column_of = tl.full([ROWS], -1, tl.int32)
    current = 0
    while current < count:
        shortest = tl.full([COLUMNS], INFINITE, tl.float32)
        done = j < 0
        via = tl.full([COLUMNS], -1, tl.int32)
        distance = 0.0
        row = current
        free = -1
        while free < 0:  # the shortest path from the row to a free column
            paid = tl.sum(tl.where(i == row, u, 0.0), 0)
            reach = distance + tl.load(cost + row * columns + j, real, INFINITE) - paid - v
            better = (done == 0) & real & (reach < shortest)
            via = tl.where(better, row, via)
            shortest = tl.where(better, reach, shortest)
            open_ = tl.where(done | (real == 0), INFINITE * 2, shortest)
            distance = tl.min(open_, 0)
            nearest = tl.min(tl.where(open_ == distance, j, COLUMNS), 0)
            done = done | (j == nearest)
            taken_by = tl.sum(tl.where(j == nearest, row_of, 0), 0)
            free = tl.where(taken_by < 0, nearest, -1)
            row = tl.where(taken_by < 0, row, taken_by)
        slack = tl.where(done, distance - shortest, 0.0)
        held = (row_of[None, :] == i[:, None]) & done[None, :]
        u += tl.sum(tl.where(held, slack[None, :], 0.0), 1) + tl.where(i == current, distance, 0.0)
        v -= slack
        column = free
        going = 1
        while going > 0:  # each row on the path moves to its new column
            row = tl.sum(tl.where(j == column, via, 0), 0)
            row_of = tl.where(j == column, row, row_of)
            following = tl.sum(tl.where(i == row, column_of, 0), 0)
            column_of = tl.where(i == row, column, column_of)
            column = following
            going = tl.where(row == current, 0, 1)
        current += 1
    tl.store(out + problem * rows + i, column_of, i < rows)
