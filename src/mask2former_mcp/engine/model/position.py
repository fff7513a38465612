"""Sine position embedding of a feature map, normalised to its height and width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000.0
EPSILON = 1e-6


def sine(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """[height * width, channels] in the type and on the device of `like`: first half rows, second half columns.

    Each half holds sine and cosine in turn at falling frequencies (Vaswani et al., 2017; over two axes as in DETR).
    They are rounded at the end only: angles in half precision would make neighbours the same place.
    """
    half, wide = channels // 2, torch.promote_types(like.dtype, torch.float32)
    exponent = 2 * torch.arange(half, device=like.device, dtype=wide).div(2, rounding_mode="floor") / half
    period = TEMPERATURE**exponent

    def axis(length: int) -> Tensor:
        place = torch.arange(1, length + 1, device=like.device, dtype=wide) / (length + EPSILON) * 2 * math.pi
        angle = place[:, None] / period
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    rows = axis(height)[:, None].expand(height, width, half)
    columns = axis(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).flatten(0, 1).to(like.dtype)
