"""Mask logits from stride 4 to the size of the original image, in one product per axis.

The published read-out resizes twice, both times bilinearly: to the padded network input, then, the padding cut off, to
the original image. Both are linear and act on each axis alone, so their composition is one matrix per axis, exactly.
It can be applied to some rows only, which bounds the memory that a large photo needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Resampler:
    """rows [H, h] and columns [W, w]: how the original's rows and columns mix those of the mask grid."""

    rows: Tensor
    columns: Tensor

    @property
    def size(self) -> Size:
        """(H, W) of the original image."""
        return self.rows.shape[0], self.columns.shape[0]

    def __call__(self, grid: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """grid [K, h, w] -> [K, stop - start, W]: the given rows of the original."""
        return self.rows[start:stop] @ grid @ self.columns.T

    def transposed(self, grid: Tensor) -> Tensor:
        """grid [K, h, w] -> [K, W, H]: memory in the column order that run lengths count in."""
        return self.columns @ grid.transpose(1, 2) @ self.rows.T


class Taps(NamedTuple):
    """A row or column of the original [N] from T neighbouring ones of the grid: first [N] int32, weights [N, T]."""

    first: Tensor
    weights: Tensor


@lru_cache(maxsize=16)  # the images of a folder have few sizes
def to_original(
    grid: Size,
    padded: Size,
    kept: Size,
    original: Size,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Resampler:
    """grid: size of the mask logits; padded: of the network's input; kept: of the image in it; all (height, width).
    dtype: of the grids that it is for."""
    each = zip(grid, padded, kept, original, strict=True)
    with _aside(device):
        rows, columns = (_axis(*sizes, device=device).to(dtype) for sizes in each)
    return Resampler(rows, columns)


@lru_cache(maxsize=16)
def taps(grid: Size, padded: Size, kept: Size, original: Size, device: torch.device) -> tuple[Taps, Taps]:
    """The same, float32, for whoever goes through the original pixel by pixel: of its rows, and of its columns."""
    each = zip(grid, padded, kept, original, strict=True)
    with _aside(device):
        rows, columns = (_taps(_axis(*sizes, device=device)) for sizes in each)
    return rows, columns


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """On a GPU in a stream of its own, which waits for no network and comes before one; done when the block is: what is
    kept for later calls may be read in another stream by then."""
    if device.type != "cuda":
        yield
        return
    stream = _own_stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


@lru_cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: each has memory of its own."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


def _taps(matrix: Tensor) -> Taps:
    """[N, n] -> its band."""
    taken, length = matrix != 0, matrix.shape[1]
    first, behind = taken.int().argmax(1), length - taken.flip(1).int().argmax(1)
    span = int((behind - first).max())
    first = first.clamp(max=length - span)
    return Taps(first.int(), matrix.gather(1, first[:, None] + torch.arange(span, device=matrix.device)))


def _axis(grid: int, padded: int, kept: int, original: int, *, device: torch.device) -> Tensor:
    """[original, grid]: what the two resizes do to the unit vectors."""
    units = torch.eye(grid, device=device)[None]
    up = F.interpolate(units, size=padded, mode="linear", align_corners=False)[..., :kept]
    out = F.interpolate(up.contiguous(), size=original, mode="linear", align_corners=False)
    return out[0].T.contiguous()
