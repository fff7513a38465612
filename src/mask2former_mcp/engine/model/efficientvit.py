"""EfficientViT (Cai et al., 2023, https://arxiv.org/abs/2205.14756) as a backbone of four stages, strides 4 to 32.

Convolutions with batch norm, and in the last stages multi-scale linear attention: every pixel attends to every other
at a cost that grows with their number, not with its square. The b family is for small machines, the l family for GPUs.
Module names are those of the published files, which TAO keeps below `backbone.model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

EXPANSION: dict[str, tuple[int, ...]] = {
    "b": (1, 4, 4, 4, 4),
    "l": (1, 4, 4, 4, 6),
}  # inner over outer width of a block, stem first
NEIGHBOURHOOD = 5  # pixels a side that the second scale of attention gathers
SMALLEST = {torch.float16: 1e-5, torch.bfloat16: 1e-5, torch.float32: 1e-5, torch.float64: 1e-15}


@dataclass(frozen=True)
class Size:
    """Channels and blocks of the stem and the four stages, and the width of an attention head."""

    family: Literal["b", "l"]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    head: int


SIZES = {
    "b0": Size("b", (8, 16, 32, 64, 128), (1, 2, 2, 2, 2), 16),
    "b1": Size("b", (16, 32, 64, 128, 256), (1, 2, 3, 3, 4), 16),
    "b2": Size("b", (24, 48, 96, 192, 384), (1, 3, 4, 4, 6), 32),
    "b3": Size("b", (32, 64, 128, 256, 512), (1, 4, 6, 6, 9), 32),
    "l0": Size("l", (32, 64, 128, 256, 512), (1, 1, 1, 4, 4), 32),
    "l1": Size("l", (32, 64, 128, 256, 512), (1, 1, 1, 6, 6), 32),
    "l2": Size("l", (32, 64, 128, 256, 512), (1, 2, 2, 8, 8), 32),
    "l3": Size("l", (64, 128, 256, 512, 1024), (1, 2, 2, 8, 8), 32),
}


class EfficientVit(nn.Module):
    """The backbone: images [B, 3, H, W] -> four maps [B, ceil(H / s), ceil(W / s), C], s = 4, 8, 16, 32.

    recompute: stages keep only their input for the backward.
    """

    def __init__(self, size: Size, *, recompute: bool = False) -> None:
        super().__init__()
        self.num_features = size.widths[1:]
        self.model = Stages(size, recompute=recompute)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [level.permute(0, 2, 3, 1) for level in self.model(images)]


class Stages(nn.Module):
    """Stem and stages, under the names of a published file: four maps [B, C, h, w]."""

    def __init__(self, size: Size, *, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        width, act = size.widths[0], _activation(size)
        stem = Sequence([Conv(3, width, stride=2, act=act), *_stem_blocks(size)])
        stages = [_stage(size, i) for i in range(1, len(size.widths))]
        # Published files of the l family count the stem as a stage.
        self.input_stem = stem if size.family == "b" else None
        self.stages = nn.ModuleList(stages if size.family == "b" else [stem, *stages])
        if size.family == "l":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 1e-7  # what the published weights were trained with

    def forward(self, images: Tensor) -> list[Tensor]:
        x, levels = images if self.input_stem is None else self.input_stem(images), []
        for stage in self.stages:
            if self.recompute and self.training:
                x = checkpoint(stage, x, use_reentrant=False, context_fn=partial(_contexts, stage))
            else:
                x = stage(x)
            levels.append(x)
        return levels[-4:]  # without the stem's


class Sequence(nn.Module):
    """Blocks one after the other."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.op_list:
            x = block(x)
        return x


class Residual(nn.Module):
    """Adds a block's input to its output. Without `add`, as where stride or width change, it is the block alone."""

    def __init__(self, main: nn.Module, *, add: bool = True) -> None:
        super().__init__()
        self.main, self.add = main, add

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x)
        return x + out if self.add else out


class Conv(nn.Module):
    """Convolution, then batch norm (or a bias instead), then an activation (or none)."""

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        normalise: bool = True,
        bias: bool | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        bias = not normalise if bias is None else bias
        self.conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(outer) if normalise else None
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.act is None else self.act(x)


class Separable(nn.Module):
    """A convolution per channel, then one across channels."""

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__()
        self.depth_conv = Conv(width, width, groups=width, act=act)
        self.point_conv = Conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.point_conv(self.depth_conv(x))
        return out


class Plain(nn.Module):
    """Two full convolutions."""

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__()
        self.conv1 = Conv(width, width, act=act)
        self.conv2 = Conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


class Inverted(nn.Module):
    """Widens, convolves each channel, narrows. Beside attention only the last of the three is normalised."""

    def __init__(
        self, inner: int, outer: int, expansion: int, act: nn.Module, *, stride: int = 1, fewer_norms: bool = False
    ) -> None:
        super().__init__()
        wide, norm = inner * expansion, not fewer_norms
        self.inverted_conv = Conv(inner, wide, 1, normalise=norm, act=act)
        self.depth_conv = Conv(wide, wide, stride=stride, groups=wide, normalise=norm, act=act)
        self.point_conv = Conv(wide, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.point_conv(self.depth_conv(self.inverted_conv(x)))
        return out


class FusedInverted(nn.Module):
    """Widens with a full convolution, narrows: more arithmetic than `Inverted`, in fewer and larger pieces."""

    def __init__(self, inner: int, outer: int, expansion: int, act: nn.Module, *, stride: int = 1) -> None:
        super().__init__()
        self.spatial_conv = Conv(inner, inner * expansion, stride=stride, act=act)
        self.point_conv = Conv(inner * expansion, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.point_conv(self.spatial_conv(x))
        return out


class LinearAttention(nn.Module):
    """Global attention with relu(q) relu(k) in the place of the softmax, at two scales.

    The second scale's q, k and v are gathered from a neighbourhood, head by head.
    """

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        heads = width // head
        total = 3 * heads * head
        self.qkv = Conv(width, total, 1, normalise=False, bias=False)
        gather = nn.Conv2d(total, total, NEIGHBOURHOOD, padding=NEIGHBOURHOOD // 2, groups=total, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(gather, nn.Conv2d(total, total, 1, groups=3 * heads, bias=False))])
        self.proj = Conv(2 * heads * head, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        qkv = self.qkv(x)
        both = torch.cat([qkv, *(gather(qkv) for gather in self.aggreg)], 1)
        # [B, scales * heads * 3 * d, h, w] -> 3 x [B, scales * heads, d, h * w]
        q, k, v = torch.unflatten(both.flatten(2), 1, (-1, 3 * self.head)).chunk(3, 2)
        with _no_autocast(x):
            out = self._attend(q, k, v)
        out = torch.unflatten(out.to(x.dtype).flatten(1, 2), 2, (height, width))
        projected: Tensor = self.proj(out)
        return projected

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, heads, d, n] -> [B, heads, d, n]. Sums over all pixels leave the range of 16 bits."""
        if q.dtype in (torch.float16, torch.bfloat16):
            q, k, v = q.float(), k.float(), v.float()
        q, k = F.relu(q), F.relu(k)
        context = v @ k.transpose(-1, -2)  # [B, heads, d, d]
        weight = k.sum(-1)[:, :, None] @ q  # [B, heads, 1, n]
        return (context @ q) / (weight + SMALLEST[q.dtype])


class Attending(nn.Module):
    """Attention for the context, a convolution block for what is near."""

    def __init__(self, width: int, head: int, expansion: int, act: nn.Module) -> None:
        super().__init__()
        self.context_module = Residual(LinearAttention(width, head))
        self.local_module = Residual(Inverted(width, width, expansion, act, fewer_norms=True))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.local_module(self.context_module(x))
        return out


def _activation(size: Size) -> nn.Module:
    return nn.Hardswish() if size.family == "b" else nn.GELU(approximate="tanh")


def _stem_blocks(size: Size) -> list[nn.Module]:
    width, block = size.widths[0], Separable if size.family == "b" else Plain
    return [Residual(block(width, _activation(size))) for _ in range(size.depths[0])]


def _stage(size: Size, index: int) -> Sequence:
    """Stage 1 to 4: a block that halves the map, then the others; in the b family it counts among the depth."""
    inner, outer, depth = size.widths[index - 1], size.widths[index], size.depths[index]
    expansion, act = EXPANSION[size.family][index], _activation(size)
    attends = index >= (3 if size.family == "b" else 4)
    if size.family == "b":
        first: nn.Module = Inverted(inner, outer, expansion, act, stride=2, fewer_norms=attends)
        depth -= 0 if attends else 1
    elif index < 3:
        first = FusedInverted(inner, outer, 4 * expansion, act, stride=2)
    else:
        first = Inverted(inner, outer, 4 * expansion, act, stride=2, fewer_norms=True)
    blocks: list[nn.Module] = [Residual(first, add=False)]
    for _ in range(depth):
        if attends:
            blocks.append(Attending(outer, size.head, expansion, act))
        elif size.family == "b":
            blocks.append(Residual(Inverted(outer, outer, expansion, act)))
        elif index < 3:
            blocks.append(Residual(FusedInverted(outer, outer, expansion, act)))
        else:
            blocks.append(Residual(Inverted(outer, outer, expansion, act, fewer_norms=True)))
    return Sequence(blocks)


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Nothing where autocast is off: the exporter then has no context to write down."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the forward of a stage, and around its repetition in the backward."""
    return nullcontext(), _still(stage)


@contextmanager
def _still(stage: nn.Module) -> Iterator[None]:
    """Keeps batch norms from counting a batch twice, while a stage is computed again for its backward."""
    norms = [module for module in stage.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    usual = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, (momentum, count) in zip(norms, usual, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
