"""What queries and classes make of an image's pixels.

Two kernels, one for the classes and one for the queries, each of which makes a pixel's mask logits anew out of the
grid: cheaper than to keep them, and than one kernel that does both and has registers for neither.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mask2former_mcp.engine import postprocess
from mask2former_mcp.engine.resample import Taps

MOST_QUERIES = 256  # whose logits of a block of pixels fit into a program's registers
CLASSES = 32  # at a time
WEIGHED, COUNTED = 4, 126  # blocks of pixels that a program of either kernel goes through, at most
TOGETHER = 64  # programs whose sums are added in float32, in which their counts are exact


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
    queries = grids.shape[3]
    kept = max(16, triton.next_power_of_2(queries))
    grids = F.pad(grids, (0, kept - queries)).contiguous()
    classes = None if weights is None else _weigh(grids, rows, columns, weights)
    winners, sums = _count(grids, rows, columns, queries, scores)
    return Seen(classes, winners, sums)


def _weigh(grids: Tensor, rows: Taps, columns: Taps, weights: Tensor) -> Tensor:
    """The classes of `look`; grids [B, h, w, K] with Q <= K, a power of 2."""
    (images, h, w, kept), (_, queries, count) = grids.shape, weights.shape
    size = (len(rows.first), len(columns.first))
    # Of a wider table, or a longer type, more than that needs more shared memory or registers than there are.
    block = 128 if kept * grids.element_size() <= 256 else max(16, min(64, 8192 // kept))
    tiles = _tiles(size[0] * size[1], block, WEIGHED)
    weights = F.pad(weights.to(grids.dtype), (0, -count % CLASSES, 0, kept - queries)).contiguous()
    classes = grids.new_empty(images, *size, dtype=postprocess.smallest(count))
    _classes[(triton.cdiv(size[0] * size[1], block * tiles), images)](
        grids,
        *rows,
        *columns,
        weights,
        classes,
        size[0] * size[1],
        size[1],
        h * w,
        w,
        queries,
        weights.shape[2],
        QUERIES=kept,
        ROWS=rows.weights.shape[1],
        COLUMNS=columns.weights.shape[1],
        CLASSES=CLASSES,
        BLOCK=block,
        TILES=tiles,
        PRODUCT="ieee" if grids.dtype == torch.float32 else "tf32",
        num_warps=4,
    )
    return classes


def _count(
    grids: Tensor, rows: Taps, columns: Taps, queries: int, scores: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """The winners and sums of `look`."""
    images, h, w, kept = grids.shape
    size, block = (len(rows.first), len(columns.first)), min(16, 512 // kept)
    tiles = _tiles(size[0] * size[1], block, COUNTED)
    programs = triton.cdiv(size[0] * size[1], block * tiles)
    places = -(-programs // TOGETHER) * TOGETHER
    sums = torch.empty(images, places, 5, queries, device=grids.device)
    sums[:, programs:] = 0
    winners = None if scores is None else grids.new_empty(images, *size, dtype=postprocess.smallest(queries))
    _queries[(programs, images)](
        grids,
        *rows,
        *columns,
        sums if scores is None else scores.contiguous(),  # of which no element is touched
        sums if winners is None else winners,
        sums,
        size[0] * size[1],
        size[1],
        h * w,
        w,
        queries,
        places,
        QUERIES=kept,
        ROWS=rows.weights.shape[1],
        COLUMNS=columns.weights.shape[1],
        BLOCK=block,
        TILES=tiles,
        WIN=scores is not None,
        num_warps=2,
    )
    return winners, sums.unflatten(1, (-1, TOGETHER)).sum(2).sum(1, dtype=torch.float64)


def _tiles(pixels: int, block: int, most: int) -> int:
    """Blocks of pixels for each program: of a small image no more than it has, rounded up to a power of 2."""
    return min(most, int(triton.next_power_of_2(triton.cdiv(pixels, block))))


@triton.jit
def _logits(
    grid,
    first_rows,
    row_weights,
    first_columns,
    column_weights,
    n,
    real,
    width,
    grid_width,
    queries,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """[BLOCK, QUERIES] of pixels n; minus infinity where there is no pixel, or no query."""
    q = tl.arange(0, QUERIES)[None, :]
    y, x = n // width, n % width
    top = tl.load(first_rows + y, real, 0)
    left = tl.load(first_columns + x, real, 0)
    logit = tl.zeros([BLOCK, QUERIES], tl.float32)
    for i in tl.static_range(ROWS):
        down = tl.load(row_weights + y * ROWS + i, real, 0.0)
        for j in tl.static_range(COLUMNS):
            share = down * tl.load(column_weights + x * COLUMNS + j, real, 0.0)
            at = (top + i) * grid_width + left + j
            logit += share[:, None] * tl.load(grid + at[:, None] * QUERIES + q).to(tl.float32)
    return tl.where(real[:, None] & (q < queries), logit, float("-inf"))


@triton.jit(do_not_specialize=["pixels", "width", "grid_pixels", "grid_width", "queries", "count"])
def _classes(
    grids,
    first_rows,
    row_weights,
    first_columns,
    column_weights,
    weights,
    classes,
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
    PRODUCT: tl.constexpr,
):
    """count: of classes, a multiple of CLASSES; the last ones may weigh nothing."""
    program, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    grid = grids + image * grid_pixels * QUERIES
    q, c = tl.arange(0, QUERIES), tl.arange(0, CLASSES)
    table = weights + (image * QUERIES + q)[:, None] * count + c[None, :]
    for tile in range(TILES):
        n = (program * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        real = n < pixels
        logit = _logits(
            grid, first_rows, row_weights, first_columns, column_weights, n, real, width, grid_width, queries,
            QUERIES, ROWS, COLUMNS, BLOCK,
        )  # fmt: skip
        p = 1 / (1 + tl.exp(-logit))
        # Of the largest, so that in half precision something is left where no query sees anything.
        most = tl.max(p, 1)
        relative = (p * (1 / tl.where(most > 0, most, 1.0))[:, None]).to(weights.dtype.element_ty)
        highest = tl.full([BLOCK, CLASSES], -1.0, tl.float32)
        best = tl.zeros([BLOCK, CLASSES], tl.int32)
        for first in range(0, count, CLASSES):
            total = tl.dot(relative, tl.load(table + first), input_precision=PRODUCT)
            better = total > highest
            best = tl.where(better, first, best)
            highest = tl.where(better, total, highest)
        column = tl.argmax(highest, 1)  # not one that weighs nothing: it is no more than another, and comes later
        class_ = tl.max(tl.where(c[None, :] == column[:, None], best, 0), 1) + column
        tl.store(classes + image * pixels + n, (class_ + 1).to(classes.dtype.element_ty), real)


@triton.jit(do_not_specialize=["pixels", "width", "grid_pixels", "grid_width", "queries", "places"])
def _queries(
    grids,
    first_rows,
    row_weights,
    first_columns,
    column_weights,
    scores,
    winners,
    sums,
    pixels,
    width,
    grid_pixels,
    grid_width,
    queries,
    places,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    WIN: tl.constexpr,
):
    """places: of sums for each image, at least as many as it has programs."""
    tl.static_assert(TILES < 128)  # of which a byte is the sum
    program, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    grid = grids + image * grid_pixels * QUERIES
    q = tl.arange(0, QUERIES)
    areas = tl.zeros([BLOCK, QUERIES], tl.int32)  # four counts, a byte each
    quality = tl.zeros([BLOCK, QUERIES], tl.float32)
    for tile in range(TILES):
        n = (program * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        real = n < pixels
        logit = _logits(
            grid, first_rows, row_weights, first_columns, column_weights, n, real, width, grid_width, queries,
            QUERIES, ROWS, COLUMNS, BLOCK,
        )  # fmt: skip
        p = 1 / (1 + tl.exp(-logit))
        own, inside = logit >= 0, logit > 0
        areas += tl.where(inside, 1 + (1 << 24), tl.where(own, 1, 0))
        quality += tl.where(inside, p, 0.0)
        if WIN:
            s = tl.load(scores + image * queries + q, q < queries, 0.0)[None, :]
            winner = tl.argmax(tl.where(s > 0, p * s, -1.0), 1)
            won = (q[None, :] == winner[:, None]) & real[:, None]
            won = tl.where(won, tl.where(own, (1 << 8) + (1 << 16), 1 << 8), 0)
            areas += won
            within = tl.max(won, 1) > 1 << 8
            out = winners + image * pixels + n
            tl.store(out, tl.where(within, winner, queries).to(winners.dtype.element_ty), real)
    to = sums + (image * places + program) * 5 * queries + q
    there = q < queries
    tl.store(to, tl.sum(areas & 255, 0).to(tl.float32), there)
    tl.store(to + queries, tl.sum((areas >> 8) & 255, 0).to(tl.float32), there)
    tl.store(to + 2 * queries, tl.sum((areas >> 16) & 255, 0).to(tl.float32), there)
    tl.store(to + 3 * queries, tl.sum(areas >> 24, 0).to(tl.float32), there)
    tl.store(to + 4 * queries, tl.sum(quality, 0), there)
