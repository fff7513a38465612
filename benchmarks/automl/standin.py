"""A stand-in for training Mask2Former: the same knobs, an answer in microseconds. What it assumes is all here.

An instance (one data set, one network) is drawn from a seed. Its noise-free mIoU is

    PEAK * rates * architecture * resolution

rates         exp(-penalty), quadratic in decades: the base learning rate around an optimum that lies up to 0.8 of a
              decade from the resolved one; the backbone's rate (lr * multiplier) around its own optimum, up to 0.6 of a
              decade from the resolved one, so that the two knobs interact; weight decay, up to 0.7 of a decade off and
              four times as flat. Above six times its optimum the learning rate diverges and the score collapses.
architecture  saturating in queries and width, with a mild optimum in width and depth: the knobs that NVIDIA's packaged
              ranges vary. At the resolved values the factor is 1.
resolution    falls with a shorter training or test edge (power 0.35); an upper limit below the lower one counts as
              that limit. At the resolved values, and above, the factor is 1.

A measured value carries normal noise of NOISE, as two seeds of one training differ. After e of E epochs a run shows
the value times 1 - exp(-4 e / E), with a little more for slow rates still to come.

The best known value of an instance is PEAK: the resolved architecture and resolution at the best rates. A search that
leaves those alone starts from factors of 1, which is the point of a curated space; one that varies them wins little.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

PEAK = 0.55
NOISE = 0.004
LR, MULTIPLIER, DECAY = "train.optim.lr", "train.optim.backbone_multiplier", "train.optim.weight_decay"
RESOLVED: Mapping[str, float] = {
    LR: 2e-4,
    MULTIPLIER: 0.1,
    DECAY: 0.05,
    "model.mask_former.num_object_queries": 100,
    "model.mask_former.hidden_dim": 256,
    "model.mask_former.dec_layers": 10,
    "dataset.augmentation.train_max_size": 2560,
    "dataset.augmentation.test_min_size": 640,
    "dataset.augmentation.test_max_size": 640,
}


@dataclass(frozen=True)
class Instance:
    """Optima in decades from the resolved values."""

    lr: float
    backbone: float
    decay: float

    @classmethod
    def drawn(cls, seed: int) -> "Instance":
        random = np.random.default_rng([20_240, seed])
        return cls(lr=random.uniform(-0.8, 0.8), backbone=random.uniform(-0.6, 0.6), decay=random.uniform(-0.7, 0.7))

    def value(self, knobs: Mapping[str, Any]) -> float:
        """Noise-free mIoU of a whole run; knobs that are not named keep their resolved value."""
        full = {**RESOLVED, **{key: float(value) for key, value in knobs.items() if key in RESOLVED}}
        return PEAK * self._rates(full) * _architecture(full) * _resolution(full)

    def measured(self, knobs: Mapping[str, Any], noise: np.random.Generator) -> float:
        return max(0.0, self.value(knobs) + float(noise.normal(0.0, NOISE)))

    def curve(self, knobs: Mapping[str, Any], epochs: int, noise: np.random.Generator) -> list[float]:
        """Best so far after each epoch of a run of `epochs`."""
        final = self.value(knobs)
        slow = max(0.0, self.lr - _decades(float(knobs.get(LR, RESOLVED[LR])), RESOLVED[LR]))
        shown = [final * (1 - math.exp(-4.0 / (1 + slow) * (epoch + 1) / epochs)) for epoch in range(epochs)]
        scale = final / shown[-1] if shown[-1] > 0 else 0.0
        noisy = [max(0.0, value * scale + float(noise.normal(0.0, NOISE))) for value in shown]
        return list(np.maximum.accumulate(noisy))

    def _rates(self, full: Mapping[str, float]) -> float:
        lr = _decades(full[LR], RESOLVED[LR]) - self.lr
        backbone = _decades(full[LR] * full[MULTIPLIER], RESOLVED[LR] * RESOLVED[MULTIPLIER]) - self.backbone
        decay = _decades(full[DECAY], RESOLVED[DECAY]) - self.decay
        penalty = 0.45 * lr**2 + 0.2 * backbone**2 + 0.11 * decay**2
        if lr > math.log10(6.0):
            penalty += 4.0 * (lr - math.log10(6.0))
        return math.exp(-min(penalty, 20.0))


def _architecture(full: Mapping[str, float]) -> float:
    queries = 1 - math.exp(-full["model.mask_former.num_object_queries"] / 15)
    width = math.exp(-0.03 * math.log2(max(full["model.mask_former.hidden_dim"], 1) / 256) ** 2)
    depth = math.exp(-0.002 * (full["model.mask_former.dec_layers"] - 10) ** 2)
    return min(queries / (1 - math.exp(-100 / 15)), 1.0) * width * depth


def _resolution(full: Mapping[str, float]) -> float:
    train = min(full["dataset.augmentation.train_max_size"], 640) / 640
    test = min(full["dataset.augmentation.test_min_size"], full["dataset.augmentation.test_max_size"], 640) / 640
    return (max(train, 1e-3) * max(test, 1e-3)) ** 0.35


def _decades(value: float, reference: float) -> float:
    return math.log10(max(value, 1e-12) / reference)
