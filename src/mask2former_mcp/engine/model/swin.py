"""Swin Transformer (Liu et al., 2021, https://arxiv.org/abs/2103.14030) as a backbone of four stages, strides 4 to 32.

Maps are kept channels last, [B, h, w, C]. Any image size: patches, windows and merges pad with zeros on the right and
below, as the original does. Windows are cut after the projection to q, k and v, not before: a padded token is zero
there, so its projection is the bias, and the product runs over real tokens only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn, unflatten
from torch.utils.checkpoint import checkpoint

WindowKernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, int, int, float], Tensor]
"""(qkv, what padding holds, bias table, its index, heads, window, shift, scale) -> [B, h, w, C]."""

PATCH = 4
BLOCKED = -100.0  # added between tokens that only the cyclic shift made neighbours; published weights saw this value


class Swin(nn.Module):
    """The backbone: images [B, 3, H, W] -> four normalised maps [B, ceil(H / s), ceil(W / s), C], s = 4, 8, 16, 32.

    drop_path_rate grows linearly from 0 at the first block. pretrain_img_size: with it, absolute position embeddings
    of that image's patches are added (`ape`), resized to the map. recompute: blocks keep only their input for the
    backward.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window_size: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        pretrain_img_size: int | None = None,
        patch_norm: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = tuple(embed_dim << i for i in range(len(depths)))
        self.patch_embed = PatchEmbed(embed_dim, normalise=patch_norm)
        self.pos_drop = nn.Dropout(drop_rate)
        self.absolute_pos_embed: nn.Parameter | None = None
        if pretrain_img_size is not None:
            side = pretrain_img_size // PATCH
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        rates = iter(drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths)))
        self.layers = nn.ModuleList()
        for i, (dim, depth, heads) in enumerate(zip(self.num_features, depths, num_heads, strict=True)):
            blocks = [
                Block(
                    dim,
                    WindowAttention(dim, heads, window_size, qkv_bias, qk_scale, attn_drop_rate, drop_rate),
                    shift=window_size // 2 if j % 2 else 0,
                    hidden=int(dim * mlp_ratio),
                    drop=drop_rate,
                    drop_path=next(rates),
                )
                for j in range(depth)
            ]
            self.layers.append(Stage(dim, blocks, merge=i + 1 < len(depths), recompute=recompute))
            self.add_module(f"norm{i}", nn.LayerNorm(dim))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            place = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic")
            x = x + place.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        maps = []
        for i, stage in enumerate(self.layers):
            out, x = stage(x)
            maps.append(self.get_submodule(f"norm{i}")(out))
        return maps


class PatchEmbed(nn.Module):
    """Projects patches of 4 x 4 pixels: [B, 3, H, W] -> [B, ceil(H / 4), ceil(W / 4), C]."""

    def __init__(self, dim: int, *, normalise: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)
        self.norm = nn.LayerNorm(dim) if normalise else None

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        x = F.pad(images, (0, -width % PATCH, 0, -height % PATCH))
        # The convolution's kernels do not overlap: as a matrix product it is faster, and channels come out last.
        x = unflatten(unflatten(x, 3, (-1, PATCH)), 2, (-1, PATCH)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        x = F.linear(x, self.proj.weight.flatten(1), self.proj.bias)
        return x if self.norm is None else self.norm(x)


class Stage(nn.Module):
    """Blocks of one resolution. Returns their output, and that merged 2 x 2 for the next stage (the last: as is)."""

    def __init__(self, dim: int, blocks: list[Block], *, merge: bool, recompute: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = PatchMerging(dim) if merge else None
        self.window, self.shift = blocks[0].attn.window, max(block.shift for block in blocks)
        self.recompute = recompute

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        blocked = shift_mask(x, self.window, self.shift) if self.shift else None
        for block in self.blocks:
            if self.recompute and self.training:
                x = checkpoint(block, x, blocked, use_reentrant=False)
            else:
                x = block(x, blocked)
        return x, x if self.downsample is None else self.downsample(x)


class PatchMerging(nn.Module):
    """[B, h, w, C] -> [B, ceil(h / 2), ceil(w / 2), 2 C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # Order of the four pixels: down first, then right.
        x = unflatten(unflatten(x, 2, (-1, 2)), 1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        out: Tensor = self.reduction(self.norm(x))
        return out


class Block(nn.Module):
    """Attention in windows, cyclically shifted in every second block, then an MLP; both residual, normalised before."""

    def __init__(
        self, dim: int, attn: WindowAttention, *, shift: int, hidden: int, drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, drop)
        self.shift, self.drop_path = shift, drop_path

    def forward(self, x: Tensor, blocked: Tensor | None) -> Tensor:
        x = self._add(x, self.attn(self.norm1(x), self.shift, blocked if self.shift else None))
        return self._add(x, self.mlp(self.norm2(x)))

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Stochastic depth (Huang et al., 2016): in training an image misses the branch with chance drop_path."""
        if not (self.training and self.drop_path):
            return x + branch
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop_path
        return torch.addcmul(x, branch, kept.to(branch.dtype) / max(1 - self.drop_path, 1e-6))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
        return out


class WindowAttention(nn.Module):
    """Multi-head attention within windows of w x w tokens, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop: float,
        drop: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop, self.drop = nn.Dropout(attn_drop), nn.Dropout(drop)
        self.fused: WindowKernel | None = (
            None  # set by engine.fast, on CUDA: all between the two products in one kernel
        )

    def forward(self, x: Tensor, shift: int, blocked: Tensor | None) -> Tensor:
        """x [B, h, w, C]; blocked [windows, 1, n, n], what `shift_mask` gives, n = w * w tokens in a window."""
        height, width = x.shape[1:3]
        w, heads = self.window, self.num_heads
        if self.fused is not None and not (self.training and self.attn_drop.p):
            qkv = self.qkv(x)
            padding = self.qkv.bias if self.qkv.bias is not None else qkv.new_zeros(qkv.shape[3])
            table, index = self.relative_position_bias_table, self.relative_position_index
            short: Tensor = self.drop(self.proj(self.fused(qkv, padding, table, index, heads, w, shift, self.scale)))
            return short
        qkv = F.linear(x, self.qkv.weight)
        qkv = F.pad(qkv, (0, 0, 0, -width % w, 0, -height % w))
        if shift:
            qkv = qkv.roll((-shift, -shift), (1, 2))
        rows, columns = qkv.shape[1] // w, qkv.shape[2] // w
        # [B, rows, w, columns, w, 3, heads, d] -> [3, B, rows * columns, heads, n, d]
        qkv = unflatten(unflatten(unflatten(qkv, 3, (3, heads, -1)), 2, (columns, w)), 1, (rows, w))
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(2, 3)
        if self.qkv.bias is not None:
            qkv = qkv.add_(self.qkv.bias.view(3, 1, 1, heads, 1, -1))
        q, k, v = qkv.unbind(0)
        logits = ((q * self.scale) @ k.transpose(-2, -1)).add_(self._bias(blocked))
        out = self.attn_drop(logits.softmax(-1)) @ v
        # [B, rows * columns, heads, n, d] -> [B, h, w, C]
        out = unflatten(unflatten(out, 1, (rows, columns)), 4, (w, w)).permute(0, 1, 4, 2, 5, 3, 6)
        out = out.flatten(5).flatten(3, 4).flatten(1, 2)
        if shift:
            out = out.roll((shift, shift), (1, 2))
        projected: Tensor = self.drop(self.proj(out[:, :height, :width]))
        return projected

    def _bias(self, blocked: Tensor | None) -> Tensor:
        """What is added to the logits: [heads, n, n], or [windows, heads, n, n] where a shift blocks pairs."""
        # An embedding, because its backward is faster than that of indexing.
        bias = F.embedding(self.relative_position_index, self.relative_position_bias_table).permute(2, 0, 1)
        return bias if blocked is None else bias + blocked


def relative_position_index(window: int) -> Tensor:
    """[n, n]: the row of the bias table for each pair of the n = window * window tokens."""
    place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    apart = place[:, None] - place[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def shift_mask(x: Tensor, window: int, shift: int) -> Tensor:
    """[windows, 1, n, n]: BLOCKED for pairs of tokens of the rolled map x that the roll brought together, else 0."""

    def region(length: int) -> Tensor:
        length += -length % window
        place = torch.arange(length, device=x.device)
        return (place >= length - window).long() + (place >= length - shift).long()

    regions = region(x.shape[1])[:, None] * 3 + region(x.shape[2])
    regions = unflatten(unflatten(regions, 1, (-1, window)), 0, (-1, window)).transpose(1, 2).flatten(2).flatten(0, 1)
    foreign = regions[:, None, None, :] != regions[:, None, :, None]
    return foreign.to(x.dtype) * BLOCKED


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
