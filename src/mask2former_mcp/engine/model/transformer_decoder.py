"""Masked transformer decoder: queries attend to the pixels that their own mask, as predicted so far, covers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn, unflatten

from mask2former_mcp.engine.model.pixel_decoder import LEVELS, Level, Pointwise
from mask2former_mcp.engine.model.position import sine


class MaskedTransformerDecoder(nn.Module):
    """Levels at strides 32, 16, 8 and mask features -> class logits [L, B, Q, C + 1], mask embeddings [L, B, Q, D].

    Layer i reads level i % 3. Each layer: masked cross-attention, self-attention, feed-forward. There is no dropout
    here: as in the original, the key of that name acts in the pixel decoder only.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        hidden_dim: int,
        mask_dim: int,
        num_classes: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        dim_feedforward: int,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = range(num_layers)
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads, pre_norm) for _ in layers
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads, pre_norm) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward, pre_norm) for _ in layers
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList(
            nn.Identity() if in_channels == hidden_dim else Pointwise(in_channels, hidden_dim) for _ in range(LEVELS)
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MaskEmbed(hidden_dim, mask_dim)
        for project in self.input_proj:
            if isinstance(project, Pointwise) and project.bias is not None:
                nn.init.kaiming_uniform_(project.weight, a=1)
                nn.init.zeros_(project.bias)

    def forward(self, levels: list[Level], mask_features: Tensor, *, every_layer: bool) -> tuple[Tensor, Tensor]:
        memory = [self._keys_and_values(i, level) for i, level in enumerate(levels)]
        pooled = [_pool(mask_features, size) for _, size in levels]
        x = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        place = self.query_embed.weight
        normed = self.decoder_norm(x)
        said = [(normed, self.mask_embed(normed))]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross, self_attention, feed_forward) in enumerate(layers):
            keys, values = memory[i % LEVELS]
            visible = _visible(said[-1][1], pooled[i % LEVELS])
            x = cross(x, place, keys[i // LEVELS], values[i // LEVELS], visible)
            x = feed_forward(self_attention(x, place))
            normed = self.decoder_norm(x)
            said.append((normed, self.mask_embed(normed)))
        if not every_layer:
            said = said[-1:]
        queries, embeddings = zip(*said, strict=True)
        return self.class_embed(torch.stack(queries)), torch.stack(embeddings)

    def _keys_and_values(self, index: int, level: Level) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values [B, S, C] for each layer that reads the level, in two products for all of them."""
        readers = self.transformer_cross_attention_layers[index::LEVELS]
        attentions = [layer.multihead_attn for layer in readers if isinstance(layer, CrossAttentionLayer)]
        if not attentions:
            return [], []
        tokens, (height, width) = level
        source = self.input_proj[index](tokens) + self.level_embed.weight[index]
        placed = source + sine(height, width, source.shape[2], like=source)
        weights, biases = [a.in_proj_weight.chunk(3) for a in attentions], [a.in_proj_bias.chunk(3) for a in attentions]
        _, key_weights, value_weights = (torch.cat(parts) for parts in zip(*weights, strict=True))
        _, key_biases, value_biases = (torch.cat(parts) for parts in zip(*biases, strict=True))
        keys = F.linear(placed, key_weights, key_biases).chunk(len(attentions), 2)
        values = F.linear(source, value_weights, value_biases).chunk(len(attentions), 2)
        return list(keys), list(values)


@torch.no_grad()
def _pool(mask_features: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask features at a level's size, [B, D, S].

    Bilinear resizing is linear: the masks of resized features are the resized masks, and Q full-size masks not needed.
    """
    return F.interpolate(mask_features, size=size, mode="bilinear", align_corners=False).flatten(2)


@torch.no_grad()
def _visible(embeddings: Tensor, pooled: Tensor) -> Tensor:
    """[B, 1, Q, S] bool: where a query may look, its mask being likelier than not; everywhere if its mask is empty."""
    inside = embeddings @ pooled >= 0
    return (inside | ~inside.any(-1, keepdim=True))[:, None]


class Attention(nn.Module):
    """Multi-head attention with the parameter names of torch.nn.MultiheadAttention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
        """Projected q [B, Q, C], k and v [B, S, C] -> [B, Q, C]."""
        q, k, v = (unflatten(x, 2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class CrossAttentionLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__()
        self.multihead_attn = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, place: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """x [B, Q, C], place [Q, C]; keys and values come projected."""
        attention = self.multihead_attn
        dim = x.shape[2]
        source = self.norm(x) if self.pre_norm else x
        q = F.linear(source + place, attention.in_proj_weight[:dim], attention.in_proj_bias[:dim])
        y: Tensor = x + attention(q, keys, values, visible)
        return y if self.pre_norm else self.norm(y)


class SelfAttentionLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        attention = self.self_attn
        both = 2 * x.shape[2]
        source = self.norm(x) if self.pre_norm else x
        q, k = F.linear(source + place, attention.in_proj_weight[:both], attention.in_proj_bias[:both]).chunk(2, 2)
        v = F.linear(source, attention.in_proj_weight[both:], attention.in_proj_bias[both:])
        y: Tensor = x + attention(q, k, v)
        return y if self.pre_norm else self.norm(y)


class FeedForwardLayer(nn.Module):
    def __init__(self, dim: int, hidden: int, pre_norm: bool) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        source = self.norm(x) if self.pre_norm else x
        y: Tensor = x + self.linear2(self.linear1(source).relu_())
        return y if self.pre_norm else self.norm(y)


class MaskEmbed(nn.Module):
    """Three linear layers from a query to its mask embedding."""

    def __init__(self, dim: int, mask_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, mask_dim)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu_()
        out: Tensor = self.layers[-1](x)
        return out
