"""The criterion with its two large parts in kernels: matching on the device, and sums over the matched masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mask2former_mcp.engine.criterion import IMPOSSIBLE, Criterion, Padded
from mask2former_mcp.engine.kernels.mask_sums import mask_sums
from mask2former_mcp.engine.kernels.matching import assign, cost_sums


@dataclass(frozen=True)
class FusedCriterion(Criterion):
    """Equal to Criterion up to rounding; the host never waits, unless an image has more targets than queries."""

    @torch.no_grad()
    def match(self, logits: Tensor, embeddings: Tensor, features: Tensor, targets: Padded) -> Tensor:
        layers, batch, queries = logits.shape[:3]
        slots = targets.labels.shape[1]
        if slots > queries:
            wide = targets._replace(masks=targets.masks.to(targets.valid.dtype))  # the kernels read bytes as well
            return super().match(logits, embeddings, features, wide)
        rows = embeddings.transpose(0, 1).flatten(1, 2).to(features.dtype)  # [B, LQ, D]
        focal, overlap, negative, covered = cost_sums(rows, features.transpose(1, 2), targets.masks, targets.valid)
        pixels = targets.valid.sum(1).clamp(min=1)[:, None, None]
        focal = (focal + negative[..., None]) / pixels
        dice = 1 - (2 * overlap + 1) / (covered[..., None] + targets.masks.sum(2)[:, None] + 1)
        probability = logits.float().softmax(-1).transpose(0, 1).flatten(1, 2)  # [B, LQ, C + 1]
        probability = probability.gather(2, targets.labels[:, None].expand(-1, layers * queries, -1))
        cost = self.mask_weight * focal + self.dice_weight * dice - self.class_weight * probability
        cost = cost.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE).view(batch, layers, queries, slots)
        counts = (targets.labels > 0).sum(1).repeat(layers)
        query: Tensor = assign(cost.permute(1, 0, 3, 2).flatten(0, 1), counts)
        return query.view(layers, batch, slots).long()

    def mask_sums(self, logits: Tensor, targets: Padded) -> tuple[Tensor, Tensor, Tensor]:
        focal, overlap, covered = mask_sums(logits, targets.masks, targets.valid).unbind(-1)
        return focal, overlap, covered
