"""Pixel decoder: deformable attention over strides 8 to 32, then one FPN level at stride 4 for the mask features.

Multi-scale deformable attention: Zhu et al., 2021, https://arxiv.org/abs/2010.04159.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn, unflatten
from torch.utils.checkpoint import checkpoint

from mask2former_mcp.engine.model.position import sine

FEEDFORWARD = 1024  # whatever `dim_feedforward` says: that key is the transformer decoder's
LEVELS = 3  # strides 32, 16, 8, in this order throughout
POINTS = 4  # sampled by each head on each level
GROUPS = 32  # of the group norms

Level = tuple[Tensor, tuple[int, int]]
"""Tokens [B, h * w, C] of one level, and (h, w)."""


DeformableKernel = Callable[[Tensor, Tensor, list[int]], Tensor]
"""(value [B, S, heads, d], offsets and logits [B, S, heads * LEVELS * POINTS * 3], sizes) -> [B, S, heads, d]."""


class Geometry(NamedTuple):
    """Where the tokens of all levels lie, in the units of grid_sample: -1..1 over a map, whatever its size.

    sizes: (h, w) of each level; centres [S, 1, 1, 1, 2]: (x, y) of each token; pixel [LEVELS, 1, 2]: extent of a pixel.
    """

    sizes: list[tuple[int, int]]
    centres: Tensor
    pixel: Tensor

    @classmethod
    def of(cls, sizes: list[tuple[int, int]], like: Tensor) -> Geometry:
        def axis(length: int) -> Tensor:
            return (torch.arange(length, device=like.device, dtype=like.dtype) * 2 + 1) / length - 1

        centres = [torch.stack([axis(w).expand(h, w), axis(h)[:, None].expand(h, w)], 2) for h, w in sizes]
        # Filled on the device: a copy from the host would break the recording of a CUDA graph.
        pixel = [torch.stack([like.new_full((1,), 2 / w), like.new_full((1,), 2 / h)], 1) for h, w in sizes]
        flat = torch.cat([places.flatten(0, 1) for places in centres])
        return cls(sizes, flat[:, None, None, None], torch.stack(pixel))


class PixelDecoder(nn.Module):
    """Backbone maps [B, h, w, C], strides 4 to 32 -> levels at strides 32, 16, 8; mask features [B, D, h, w] at 4.

    norm: "GN" or "" (none, and a bias instead) in the FPN. dropout acts in the encoder.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        conv_dim: int,
        mask_dim: int,
        num_layers: int,
        num_heads: int,
        norm: str = "GN",
        dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        finest, *coarser = in_channels
        self.input_proj = nn.ModuleList(Projection(channels, conv_dim) for channels in coarser[::-1])
        self.transformer = DeformableTransformer(conv_dim, num_heads, num_layers, dropout, recompute)
        self.adapter_1 = Lateral(finest, conv_dim, norm)
        self.layer_1 = Smooth(conv_dim, norm)
        self.mask_features = Pointwise(conv_dim, mask_dim)
        self._initialise()

    def forward(self, maps: list[Tensor]) -> tuple[list[Level], Tensor]:
        finest, *coarser = maps
        sources = [project(x) for project, x in zip(self.input_proj, coarser[::-1], strict=True)]
        levels = self.transformer(sources)
        tokens, size = levels[-1]
        lateral = self.adapter_1(finest)
        coarse = _channels_first(unflatten(tokens, 1, size))
        y = self.layer_1(lateral + F.interpolate(coarse, size=lateral.shape[2:], mode="bilinear", align_corners=False))
        return levels, _channels_first(self.mask_features(_channels_last(y)))

    def _initialise(self) -> None:
        for module in self.input_proj.modules():
            if isinstance(module, Pointwise) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for conv in (self.adapter_1, self.layer_1, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


class DeformableTransformer(nn.Module):
    """Encoder over the tokens of all levels: maps [B, h, w, C], coarse to fine -> the same as levels."""

    def __init__(self, dim: int, num_heads: int, num_layers: int, dropout: float, recompute: bool) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(LEVELS, dim).normal_())
        self.encoder = Encoder([EncoderLayer(dim, num_heads, dropout) for _ in range(num_layers)], recompute)

    def forward(self, maps: list[Tensor]) -> list[Level]:
        sizes = [(x.shape[1], x.shape[2]) for x in maps]
        place = [sine(*size, x.shape[3], like=x) for size, x in zip(sizes, maps, strict=True)]
        place = [p + self.level_embed[i] for i, p in enumerate(place)]
        tokens = self.encoder(torch.cat([x.flatten(1, 2) for x in maps], 1), torch.cat(place), sizes)
        return list(zip(torch.split(tokens, [h * w for h, w in sizes], 1), sizes, strict=True))


class Encoder(nn.Module):
    def __init__(self, layers: list[EncoderLayer], recompute: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.recompute = recompute

    def forward(self, x: Tensor, place: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        geometry = Geometry.of(sizes, like=place)
        for layer in self.layers:
            if self.recompute and self.training:
                x = checkpoint(layer, x, place, geometry, use_reentrant=False)
            else:
                x = layer(x, place, geometry)
        return x


class EncoderLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, FEEDFORWARD)
        self.linear2 = nn.Linear(FEEDFORWARD, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, place: Tensor, geometry: Geometry) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x, place, geometry)))
        hidden = self.dropout(self.linear1(x).relu_())
        out: Tensor = self.norm2(x + self.dropout(self.linear2(hidden)))
        return out


class DeformableAttention(nn.Module):
    """Each head of each token looks at POINTS learned places on each level, and weighs what it finds there."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sampling_offsets = nn.Linear(dim, num_heads * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(dim, num_heads * LEVELS * POINTS)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.fused: DeformableKernel | None = None  # set by engine.fast, on CUDA: softmax, places, samples, sum in one
        self._initialise()

    def forward(self, x: Tensor, place: Tensor, geometry: Geometry) -> Tensor:
        """x [B, S, C], place [S, C] -> [B, S, C]."""
        query = x + place
        value = unflatten(self.value_proj(x), 2, (self.num_heads, -1))
        if self.fused is not None:
            linears = (self.sampling_offsets, self.attention_weights)
            weight, bias = torch.cat([m.weight for m in linears]), torch.cat([m.bias for m in linears])
            found = self.fused(value, F.linear(query, weight, bias), [n for size in geometry.sizes for n in size])
            short: Tensor = self.output_proj(found.flatten(2))
            return short
        offsets = unflatten(self.sampling_offsets(query), 2, (self.num_heads, LEVELS, POINTS, 2))
        weights = unflatten(self.attention_weights(query), 2, (self.num_heads, LEVELS * POINTS)).softmax(-1)
        out: Tensor = self.output_proj(sample(value, offsets, weights, geometry))
        return out

    def _initialise(self) -> None:
        """Heads look in eight directions (for eight heads), points one to four steps away, all with the same weight."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], 1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        steps = torch.arange(1, POINTS + 1)
        grid = direction[:, None, None, :] * steps[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(grid.expand(-1, LEVELS, -1, -1).flatten())
        for constant in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(constant)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)


def sample(value: Tensor, offsets: Tensor, weights: Tensor, geometry: Geometry) -> Tensor:
    """Weighted sum of bilinear samples, zero outside a map.

    value [B, S, heads, d]; offsets [B, S, heads, LEVELS, POINTS, 2] in pixels of each level;
    weights [B, S, heads, LEVELS * POINTS] -> [B, S, heads * d].
    """
    batch, _, heads, _ = value.shape
    # Points are the rows and tokens the columns of what is sampled, so that the sum over points runs along memory.
    places = torch.addcmul(geometry.centres, offsets, geometry.pixel).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    shares = torch.split(weights.permute(0, 2, 3, 1).flatten(0, 1)[:, None], POINTS, 2)  # [B * heads, 1, POINTS, S]
    maps = torch.split(value.permute(0, 2, 3, 1).flatten(0, 1), [h * w for h, w in geometry.sizes], 2)
    total = None
    for level, size in enumerate(geometry.sizes):
        found = F.grid_sample(unflatten(maps[level], 2, size), places[level], mode="bilinear", align_corners=False)
        found = (found * shares[level]).sum(2)  # [B * heads, d, S]
        total = found if total is None else total + found
    assert total is not None
    return unflatten(total, 0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution on channels-last maps or tokens: [..., C] -> [..., D]."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class Projection(nn.Sequential):
    """1 x 1 convolution and norm: [B, h, w, C] -> [B, h, w, D]. A Sequential for the names that checkpoints have."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(Pointwise(in_channels, out_channels), nn.GroupNorm(GROUPS, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        pointwise, norm = self
        return _channels_last(norm(_channels_first(pointwise(x))))


class Lateral(Pointwise):
    """1 x 1 convolution and norm: [B, h, w, C] -> [B, D, h, w]."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, bias=not norm)
        self.norm = nn.GroupNorm(GROUPS, out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(_channels_first(super().forward(x)))
        return y


class Smooth(nn.Conv2d):
    """3 x 3 convolution, norm and ReLU: [B, C, h, w] -> the same."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__(channels, channels, 3, padding=1, bias=not norm)
        self.norm = nn.GroupNorm(GROUPS, channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(super().forward(x))
        return y.relu_()


def _channels_first(x: Tensor) -> Tensor:
    """[B, h, w, C] as [B, C, h, w], a view."""
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    """[B, C, h, w] as [B, h, w, C], a view."""
    return x.permute(0, 2, 3, 1)
