"""Matching and losses of Mask2Former, for all decoder layers and all images at once.

TAO's loss: masks are compared densely at stride 4 with sigmoid focal loss (Lin et al., 2017) and dice (Milletari et
al., 2016); classes with weighted cross entropy in which "no object" (class 0) counts little. Queries and targets are
matched by the same terms (Hungarian). Pixels that are void or padding take no part in any mask term.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former_mcp.engine.model.network import Prediction

if TYPE_CHECKING:
    from mask2former_mcp.spec.experiment import Experiment

FOCAL_ALPHA = 0.25  # weight of the positive pixels; TAO's constant. The exponent gamma is 2, written as a square below
IMPOSSIBLE = 1e9  # a cost that is not a number (the network diverges) becomes this, so that the assignment still ends


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch of B images.

    labels: B tensors [T_b] of classes 1..C; masks: B bool tensors [T_b, h, w] at the size of the mask features
    (stride 4); valid: bool [B, h, w], False where a pixel is void or padding.
    """

    labels: list[Tensor]
    masks: list[Tensor]
    valid: Tensor

    def to(self, device: torch.device | str) -> Targets:
        return Targets(
            [x.to(device, non_blocking=True) for x in self.labels],
            [x.to(device, non_blocking=True) for x in self.masks],
            self.valid.to(device, non_blocking=True),
        )


class Losses(NamedTuple):
    """total: what to differentiate; parts: its weighted terms loss_ce, loss_mask, loss_dice, detached."""

    total: Tensor
    parts: dict[str, Tensor]


class Divisors(NamedTuple):
    """What the losses of an optimiser step are divided by: sums over all its batches, means over its processes.

    targets: their number; weight: of the classes of a layer's queries in the cross entropy, together.
    """

    targets: Tensor
    weight: Tensor


class Padded(NamedTuple):
    """Targets in fixed slots: T is the largest number of targets that an image of the batch has (at least 1).

    labels [B, T] (0 in empty slots), masks [B, T, N] (0 or 1; 0 at invalid pixels), valid [B, N] (0 or 1);
    counts: the number of targets of each image.
    """

    labels: Tensor
    masks: Tensor
    valid: Tensor
    counts: list[int]
    divisors: Divisors


@dataclass(frozen=True)
class Criterion:
    """Set criterion; the weights are the spec's `model.mask_former.*_weight`, for matching and loss alike.

    deep_supervision: all layers of the prediction are trained, otherwise the last one alone.
    together: the batch is a share of a larger one that all processes train on at once. What a loss is divided by is
    then the mean over the processes, so that the mean of their losses and gradients is that of the whole batch. In the
    same way the losses of several batches of one step, divided by what is theirs together, sum up to those of one.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    deep_supervision: bool = True
    together: bool = False

    def __call__(self, prediction: Prediction, targets: Targets, divisors: Divisors | None = None) -> Losses:
        """Losses of a prediction. divisors: of the whole step, where this batch is not all of it.

        Raises ValueError if masks and mask features differ in size.
        """
        _check(targets, prediction)
        if divisors is None:
            counts = [len(labels) for labels in targets.labels]
            divisors = self.divisors(counts, prediction.class_logits.shape[2], prediction.mask_features.device)
        return self.losses(prediction, pad(targets, prediction.mask_features, divisors))

    def divisors(self, counts: Iterable[int], queries: int, device: torch.device) -> Divisors:
        """Of a step with so many targets in each image, each of which is matched as long as there are queries.

        All processes must come here if they train together.
        """
        counts = list(counts)
        matched = sum(min(count, queries) for count in counts)
        weight = matched + self.no_object_weight * (queries * len(counts) - matched)
        own = torch.tensor([sum(counts), weight], dtype=torch.float64).to(device, non_blocking=True)
        targets, weights = (mean_over_processes(own) if self.together else own).unbind()
        least = 1 / torch.distributed.get_world_size() if self.together else 1.0  # one target in the whole step
        return Divisors(targets.clamp(min=least), weights)

    def class_weights(self, num_classes: int) -> Tensor:
        """[C + 1]: what each class counts in the cross entropy, "no object" first."""
        return torch.tensor([self.no_object_weight] + [1.0] * num_classes)

    def losses(self, prediction: Prediction, targets: Padded) -> Losses:
        """The same of targets that are in slots already, at the size of the mask features."""
        logits, embeddings = prediction.class_logits, prediction.mask_embeddings
        if not self.deep_supervision:
            logits, embeddings = logits[-1:], embeddings[-1:]
        features = prediction.mask_features.flatten(2)
        matched = self.match(logits.detach(), embeddings.detach(), features.detach(), targets)
        ce = self._class_loss(logits, matched, targets)
        focal, dice = self._mask_losses(embeddings, features, matched, targets)
        parts = {
            "loss_ce": self.class_weight * ce,
            "loss_mask": self.mask_weight * focal,
            "loss_dice": self.dice_weight * dice,
        }
        return Losses(torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()})

    @torch.no_grad()
    def match(self, logits: Tensor, embeddings: Tensor, features: Tensor, targets: Padded) -> Tensor:
        """The query of each target slot, [L, B, T] long; -1 in empty slots.

        One copy to the host for all layers and images, because the device waits at each. With more targets than
        queries the dearest targets are left out (-1 as well).

        logits [L, B, Q, C + 1], embeddings [L, B, Q, D], features [B, D, N].
        """
        layers, batch = logits.shape[:2]
        cost = torch.stack([self._cost(logits[:, b], embeddings[:, b], features[b], targets, b) for b in range(batch)])
        table = cost.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE).cpu().numpy()  # [B, L, Q, T]
        query = np.full((layers, batch, targets.labels.shape[1]), -1, dtype=np.int64)
        for b, count in enumerate(targets.counts):
            for layer in range(layers if count else 0):
                rows, columns = linear_sum_assignment(table[b, layer, :, :count])
                query[layer, b, columns] = rows
        return torch.from_numpy(query).to(logits.device, non_blocking=True)

    def _cost(self, logits: Tensor, embeddings: Tensor, features: Tensor, targets: Padded, image: int) -> Tensor:
        """Matching cost [L, Q, T] of one image: an image at a time, so that the Q masks of L layers stay in the cache.

        Focal cost is sum_n (pos_n t_n + neg_n (1 - t_n)) / N, that is (pos - neg) @ t + sum neg: two products.
        """
        masks, valid = targets.masks[image], targets.valid[image]
        x = _wide(embeddings.flatten(0, 1) @ features)  # [LQ, N]
        p = x.sigmoid()
        soft = F.softplus(x)  # -log(1 - p); and -log(p) is soft - x
        negative = p.square().mul_(soft).mul_(1 - FOCAL_ALPHA)
        positive = (1 - p).square_().mul_(soft.sub_(x)).mul_(FOCAL_ALPHA)
        both = torch.cat([masks, valid[None]]).t()  # [N, T + 1]
        pixels = valid.sum().clamp(min=1)
        focal = (positive.sub_(negative) @ masks.t() + (negative @ valid)[:, None]) / pixels
        overlap = p @ both
        dice = 1 - (2 * overlap[:, :-1] + 1) / (overlap[:, -1:] + masks.sum(1) + 1)
        probability = _wide(logits).softmax(-1)[..., targets.labels[image]].flatten(0, 1)  # [LQ, T]
        cost = self.mask_weight * focal + self.dice_weight * dice - self.class_weight * probability
        return torch.unflatten(cost, 0, logits.shape[:2])

    def _class_loss(self, logits: Tensor, matched: Tensor, targets: Padded) -> Tensor:
        """Cross entropy of every query, averaged by weight over a step's layer, summed over layers."""
        layers, batch, queries = logits.shape[:3]
        # Empty slots write to one query too many, which is cut off.
        slot = torch.where(matched < 0, queries, matched)
        wanted = matched.new_zeros(layers, batch, queries + 1)
        wanted = wanted.scatter(2, slot, targets.labels.expand_as(matched))[:, :, :queries]
        surprise = -_wide(logits).log_softmax(-1).gather(3, wanted[..., None]).squeeze(3)
        weight = torch.ones_like(surprise).masked_fill_(wanted == 0, self.no_object_weight)
        return (surprise * weight).sum() / targets.divisors.weight

    def _mask_losses(
        self, embeddings: Tensor, features: Tensor, matched: Tensor, targets: Padded
    ) -> tuple[Tensor, Tensor]:
        """Focal and dice loss of the matched masks, summed over layers; only these masks are ever formed."""
        layers, _, slots = matched.shape
        chosen = embeddings.gather(2, matched.clamp(min=0)[..., None].expand(-1, -1, -1, embeddings.shape[3]))
        x = chosen.transpose(0, 1).flatten(1, 2) @ features  # [B, LT, N]
        focal, overlap, covered = self.mask_sums(torch.unflatten(x, 1, (layers, slots)), targets)
        used = (matched >= 0).transpose(0, 1).to(focal.dtype)  # [B, L, T]
        pixels = targets.valid.sum(1).clamp(min=1)[:, None, None]
        dice = 1 - (2 * overlap + 1) / (covered + targets.masks.sum(-1)[:, None] + 1)
        number = targets.divisors.targets
        return (focal / pixels * used).sum() / number, (dice * used).sum() / number

    def mask_sums(self, logits: Tensor, targets: Padded) -> tuple[Tensor, Tensor, Tensor]:
        """Focal loss, p x mask and p x valid, summed over pixels: logits [B, L, T, N] -> three times [B, L, T]."""
        x = _wide(logits)
        t, valid = targets.masks[:, None], targets.valid[:, None, None]
        p = x.sigmoid()
        wrong = p + t - 2 * p * t  # 1 - p at the target's pixels, p elsewhere: t is 0 or 1
        focal = (F.softplus(x) - x * t) * wrong.square() * ((1 - FOCAL_ALPHA - (1 - 2 * FOCAL_ALPHA) * t) * valid)
        return focal.sum(-1), (p * t).sum(-1), (p * valid).sum(-1)


def build(experiment: Experiment) -> Criterion:
    """The criterion that the spec describes. Masks are compared densely: the keys for sampled points have no effect."""
    former = experiment.model.mask_former
    return Criterion(
        class_weight=former.class_weight,
        mask_weight=former.mask_weight,
        dice_weight=former.dice_weight,
        no_object_weight=former.no_object_weight,
        deep_supervision=former.deep_supervision,
    )


def mean_over_processes(number: Tensor) -> Tensor:
    """The mean of each process's numbers; all processes must come here."""
    total = number.detach().clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def pad(targets: Targets, features: Tensor, divisors: Divisors) -> Padded:
    """Targets into slots, in the precision that the criterion sums in for these features."""
    counts = [len(labels) for labels in targets.labels]
    batch, slots = len(counts), max([1, *counts])
    kind = _wide(features).dtype
    valid = targets.valid.flatten(1).to(kind)
    labels = torch.zeros(batch, slots, dtype=torch.long, device=features.device)
    masks = torch.zeros(batch, slots, valid.shape[1], dtype=kind, device=features.device)
    for b, count in enumerate(counts):
        if count:
            labels[b, :count] = targets.labels[b]
            masks[b, :count] = targets.masks[b].flatten(1)
    return Padded(labels, masks * valid[:, None], valid, counts, Divisors(*(part.to(kind) for part in divisors)))


def _check(targets: Targets, prediction: Prediction) -> None:
    """Sizes only: looking at label values would make the host wait for the device."""
    batch, _, height, width = prediction.mask_features.shape
    if targets.valid.shape != (batch, height, width):
        raise ValueError(
            f"targets.valid has shape {tuple(targets.valid.shape)}, the mask features need {(batch, height, width)}: "
            "targets are compared at stride 4 of the padded image."
        )
    for b, (labels, masks) in enumerate(zip(targets.labels, targets.masks, strict=True)):
        if masks.shape != (len(labels), height, width):
            wanted = (len(labels), height, width)
            raise ValueError(f"masks of image {b} have shape {tuple(masks.shape)}: must be {wanted}.")


def _wide(x: Tensor) -> Tensor:
    """At least float32: sums over 25,600 pixels do not fit half precision."""
    return x if x.dtype == torch.float64 else x.float()
