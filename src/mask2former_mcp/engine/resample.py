"""Mask logits from stride 4 to the size of the original image, in one product per axis.

The published read-out resizes twice, both times bilinearly: to the padded network input, then, the padding cut off, to
the original image. Both are linear and act on each axis alone, so their composition is one matrix per axis, exactly.
It can be applied to some rows only, which bounds the memory that a large photo needs.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Resampler:
    """rows [H, h] and columns [W, w]: how the original's rows and columns mix those of the mask grid."""

    rows: Tensor
    columns: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the original image."""
        return self.rows.shape[0], self.columns.shape[0]

    def __call__(self, grid: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """grid [K, h, w] -> [K, stop - start, W]: the given rows of the original."""
        return self.rows[start:stop] @ grid @ self.columns.T

    def transposed(self, grid: Tensor) -> Tensor:
        """grid [K, h, w] -> [K, W, H]: memory in the column order that run lengths count in."""
        return self.columns @ grid.transpose(1, 2) @ self.rows.T


@lru_cache(maxsize=16)  # the images of a folder have few sizes
def to_original(
    grid: tuple[int, int],
    padded: tuple[int, int],
    kept: tuple[int, int],
    original: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Resampler:
    """grid: size of the mask logits; padded: of the network's input; kept: of the image in it; all (height, width).
    dtype: of the grids that it is for."""
    rows, columns = (_axis(*sizes, device=device).to(dtype) for sizes in zip(grid, padded, kept, original, strict=True))
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # other streams will read them too
    return Resampler(rows, columns)


def _axis(grid: int, padded: int, kept: int, original: int, *, device: torch.device) -> Tensor:
    """[original, grid]: what the two resizes do to the unit vectors."""
    units = torch.eye(grid, device=device)[None]
    up = F.interpolate(units, size=padded, mode="linear", align_corners=False)[..., :kept]
    out = F.interpolate(up.contiguous(), size=original, mode="linear", align_corners=False)
    return out[0].T.contiguous()
