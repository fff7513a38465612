"""Learned position tables resized for another window or image, as Swin's own fine-tuning does (bicubic)."""

import math
import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

BIAS = "relative_position_bias_table"
ABSOLUTE = "absolute_pos_embed"


def fit(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """`found` with the position tables of `own`'s shape, and the names of those that were resized.

    A table of other heads or channels cannot be resized: it stays as it is, for the caller to refuse.
    """
    fitted, resized = dict(found), []
    for name in found.keys() & own.keys():
        wanted = own[name].shape
        if re.search(rf"(?:^|\.){BIAS}$", name):
            table = _bias(found[name], tuple(wanted))
        elif re.search(rf"(?:^|\.){ABSOLUTE}$", name):
            table = _absolute(found[name], tuple(wanted))
        else:
            continue
        if table is not None and found[name].shape != wanted:
            fitted[name] = table
            resized.append(name)
    return fitted, sorted(resized)


def _bias(table: Tensor, wanted: tuple[int, ...]) -> Tensor | None:
    """[(2 w - 1)^2, heads] for another w; None where it is no such table."""
    if table.ndim != 2 or table.shape[1] != wanted[1]:
        return None
    old, new = math.isqrt(table.shape[0]), math.isqrt(wanted[0])
    if old * old != table.shape[0]:
        return None
    resized = _resize(table.T.reshape(1, -1, old, old), new, new)
    return resized.reshape(-1, new * new).T.contiguous()


def _absolute(table: Tensor, wanted: tuple[int, ...]) -> Tensor | None:
    """[1, C, h, w], or a published classifier's [1, h * w, C], as [1, C, h', w']; None where it is neither."""
    if table.ndim == 3 and table.shape[2] == wanted[1]:
        side = math.isqrt(table.shape[1])
        if side * side != table.shape[1]:
            return None
        table = table.transpose(1, 2).reshape(1, -1, side, side)
    if table.ndim != 4 or table.shape[1] != wanted[1]:
        return None
    return _resize(table, wanted[2], wanted[3])


def _resize(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[2:] == (height, width):
        return maps.contiguous()
    return F.interpolate(maps.float(), size=(height, width), mode="bicubic", align_corners=False).to(maps.dtype)
