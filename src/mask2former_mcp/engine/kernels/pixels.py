"""What queries and classes make of an image's pixels: each looked at once, instead of once for every question."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mask2former_mcp.engine.resample import Taps

MOST_QUERIES = 256  # whose logits of a block of pixels fit into a program's registers
BLOCK, CLASSES, TILES = 32, 32, 16  # pixels and classes at a time, and blocks for each program; up to 127, see `areas`


class Seen(NamedTuple):
    """Of B images. classes [B, H, W]: 1..C, those with the largest sum over queries of class probability x mask
    probability; None where no weights were given. winners [B, H, W]: the query of each pixel, Q where its own mask does
    not have it; None where no scores were given. sums [B, 5, Q] float64: pixels of each query's mask (logit >= 0),
    those that it won, those of them that its mask has, pixels with a logit > 0, and the mask probabilities of these
    added up."""

    classes: Tensor | None
    winners: Tensor | None
    sums: Tensor


def reference(grids: Tensor, rows: Tensor, columns: Tensor, weights: Tensor, scores: Tensor) -> Seen:
    """What `look` computes, in PyTorch and the precision of its inputs; rows [H, h] and columns [W, w] as matrices."""
    logits = torch.einsum("Yy,byxq,Xx->bqYX", rows, grids, columns)
    p, queries = logits.sigmoid(), logits.shape[1]
    value = (p * scores[..., None, None]).where(scores[..., None, None] > 0, -1)
    winner = value.argmax(1)
    within = logits.gather(1, winner[:, None])[:, 0] >= 0
    mine = F.one_hot(winner, queries).movedim(-1, 1)
    own, inside = logits >= 0, logits > 0
    areas = torch.stack([own, mine, mine * within[:, None], inside, p * inside], 1).double().sum((-2, -1))
    classes = torch.einsum("bqc,bqYX->bcYX", weights, p).argmax(1) + 1
    return Seen(classes, winner.where(within, queries), areas)


def look(grids: Tensor, rows: Taps, columns: Taps, weights: Tensor | None, scores: Tensor | None) -> Seen:
    """grids [B, h, w, Q] mask logits, Q <= MOST_QUERIES; rows and columns: how they are resampled; weights [B, Q, C]
    class probabilities, taken in the type of the grids; scores [B, Q] float32, 0 for queries that win no pixel."""
    images, h, w, queries = grids.shape
    size = (len(rows.first), len(columns.first))
    kept = max(16, triton.next_power_of_2(queries))
    grids = F.pad(grids, (0, kept - queries)).contiguous()
    programs = triton.cdiv(size[0] * size[1], BLOCK * TILES)
    sums = torch.empty(images, programs, 5, queries, device=grids.device)
    classes = winners = nothing = sums  # of which no element is touched
    count = 1
    if weights is not None:
        count = weights.shape[2]
        weights = F.pad(weights.to(grids.dtype), (0, -count % CLASSES, 0, kept - queries)).contiguous()
        classes = grids.new_empty(images, *size, dtype=_smallest(count))
    if scores is not None:
        scores = scores.contiguous()
        winners = grids.new_empty(images, *size, dtype=_smallest(queries))
    _look[(programs, images)](
        grids,
        rows.first,
        rows.weights,
        columns.first,
        columns.weights,
        nothing if weights is None else weights,
        nothing if scores is None else scores,
        classes,
        winners,
        sums,
        size[0] * size[1],
        size[1],
        h * w,
        w,
        queries,
        count,
        QUERIES=kept,
        ROWS=rows.weights.shape[1],
        COLUMNS=columns.weights.shape[1],
        CLASSES=CLASSES,
        BLOCK=BLOCK,
        TILES=TILES,
        WEIGH=weights is not None,
        WIN=scores is not None,
        PRODUCT="ieee" if grids.dtype == torch.float32 else "tf32",
        num_warps=4,
    )
    by_image = sums.sum(1, dtype=torch.float64)
    return Seen(None if weights is None else classes, None if scores is None else winners, by_image)


def _smallest(largest: int) -> torch.dtype:
    return torch.uint8 if largest <= 255 else torch.int16


@triton.jit(do_not_specialize=["pixels", "width", "grid_pixels", "grid_width", "queries", "count"])
def _look(
    grids,
    first_rows,
    row_weights,
    first_columns,
    column_weights,
    weights,
    scores,
    classes,
    winners,
    sums,
    pixels,
    width,
    grid_pixels,
    grid_width,
    queries,
    count,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    WEIGH: tl.constexpr,
    WIN: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    program, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q = tl.arange(0, QUERIES)
    padded = (count + CLASSES - 1) // CLASSES * CLASSES
    grid = grids + image * grid_pixels * QUERIES + q[None, :]
    areas = tl.zeros([BLOCK, QUERIES], tl.int32)  # four counts, a byte each
    quality = tl.zeros([BLOCK, QUERIES], tl.float32)
    for tile in range(TILES):
        n = (program * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        real = n < pixels
        y, x = n // width, n % width
        top = tl.load(first_rows + y, real, 0)
        left = tl.load(first_columns + x, real, 0)
        logit = tl.zeros([BLOCK, QUERIES], tl.float32)
        for i in tl.static_range(ROWS):
            down = tl.load(row_weights + y * ROWS + i, real, 0.0)
            for j in tl.static_range(COLUMNS):
                share = down * tl.load(column_weights + x * COLUMNS + j, real, 0.0)
                at = (top + i) * grid_width + left + j
                logit += share[:, None] * tl.load(grid + at[:, None] * QUERIES).to(tl.float32)
        live = real[:, None] & (q < queries)[None, :]
        p = tl.where(live, 1 / (1 + tl.exp(-logit)), 0.0)
        own, inside = live & (logit >= 0), live & (logit > 0)
        areas += own.to(tl.int32) + (inside.to(tl.int32) << 24)
        quality += tl.where(inside, p, 0.0)
        out = image * pixels + n
        if WIN:
            s = tl.load(scores + image * queries + q, q < queries, 0.0)[None, :]
            winner = tl.argmax(tl.where(s > 0, p * s, -1.0), 1)
            won = (q[None, :] == winner[:, None]) & real[:, None]
            left_over = won & own
            areas += (won.to(tl.int32) << 8) + (left_over.to(tl.int32) << 16)
            within = tl.max(left_over.to(tl.int32), 1) > 0
            tl.store(winners + out, tl.where(within, winner, queries).to(winners.dtype.element_ty), real)
        if WEIGH:
            # Of the largest, so that in half precision something is left where no query sees anything.
            most = tl.max(p, 1)
            relative = (p / tl.where(most > 0, most, 1.0)[:, None]).to(weights.dtype.element_ty)
            highest = tl.full([BLOCK], -1.0, tl.float32)
            best = tl.zeros([BLOCK], tl.int32)
            for first in range(0, count, CLASSES):
                c = first + tl.arange(0, CLASSES)
                table = weights + (image * QUERIES + q)[:, None] * padded + c[None, :]
                total = tl.dot(relative, tl.load(table), input_precision=PRODUCT)
                total = tl.where((c < count)[None, :], total, -1.0)
                top_one = tl.max(total, 1)
                better = top_one > highest
                best = tl.where(better, first + tl.argmax(total, 1), best)
                highest = tl.where(better, top_one, highest)
            tl.store(classes + out, (best + 1).to(classes.dtype.element_ty), real)
    to = sums + (image * tl.num_programs(0) + program) * 5 * queries + q
    there = q < queries
    tl.store(to, tl.sum(areas & 255, 0).to(tl.float32), there)
    tl.store(to + queries, tl.sum((areas >> 8) & 255, 0).to(tl.float32), there)
    tl.store(to + 2 * queries, tl.sum((areas >> 16) & 255, 0).to(tl.float32), there)
    tl.store(to + 3 * queries, tl.sum(areas >> 24, 0).to(tl.float32), there)
    tl.store(to + 4 * queries, tl.sum(quality, 0), there)
