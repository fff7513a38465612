"""The criterion against a slow reference: one layer, one image, one pair at a time, as the formulas are written."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former_mcp.engine.criterion import Criterion, Targets, build
from mask2former_mcp.engine.model.network import Prediction
from mask2former_mcp.spec.experiment import load

LAYERS, BATCH, QUERIES, CLASSES, DIM, HEIGHT, WIDTH = 3, 4, 7, 4, 6, 9, 11
CRITERION = Criterion(class_weight=1.7, mask_weight=4.1, dice_weight=3.3, no_object_weight=0.2)


def make(seed: int, counts: tuple[int, ...] = (3, 0, 5, 1)) -> tuple[Prediction, Targets]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    prediction = Prediction(
        normal(LAYERS, BATCH, QUERIES, CLASSES + 1),
        normal(LAYERS, BATCH, QUERIES, DIM),
        normal(BATCH, DIM, HEIGHT, WIDTH),
    )
    labels = [torch.randint(1, CLASSES + 1, (n,), generator=generator) for n in counts]
    masks = [torch.rand(n, HEIGHT, WIDTH, generator=generator) > 0.6 for n in counts]
    valid = torch.rand(BATCH, HEIGHT, WIDTH, generator=generator) > 0.2
    return prediction, Targets(labels, masks, valid)


def focal(x: Tensor, t: Tensor) -> Tensor:
    """Mean sigmoid focal loss (alpha 0.25, gamma 2) of logits x against 0/1 targets t."""
    p = x.sigmoid()
    positive = -0.25 * (1 - p) ** 2 * p.log() * t
    negative = -0.75 * p**2 * (1 - p).log() * (1 - t)
    return (positive + negative).mean()


def dice(x: Tensor, t: Tensor) -> Tensor:
    p = x.sigmoid()
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def slow(criterion: Criterion, prediction: Prediction, targets: Targets) -> Tensor:
    number = max(1, sum(len(labels) for labels in targets.labels))
    total = torch.zeros((), dtype=torch.float64)
    for layer in range(LAYERS):
        masks = prediction.mask_logits(layer)
        surprise, weights = [], []
        for image in range(BATCH):
            valid = targets.valid[image]
            logits, labels = prediction.class_logits[layer, image], targets.labels[image]
            x = [masks[image, q][valid] for q in range(QUERIES)]
            t = [mask[valid].double() for mask in targets.masks[image]]
            probability = logits.softmax(-1)
            cost = [
                [
                    (
                        criterion.mask_weight * focal(x[q], t[k])
                        + criterion.dice_weight * dice(x[q], t[k])
                        - criterion.class_weight * probability[q, labels[k]]
                    ).item()
                    for k in range(len(labels))
                ]
                for q in range(QUERIES)
            ]
            pairs = list(zip(*linear_sum_assignment(cost), strict=True)) if len(labels) else []
            wanted = dict.fromkeys(range(QUERIES), 0)
            for q, k in pairs:
                wanted[int(q)] = int(labels[k])
                total = total + criterion.mask_weight * focal(x[q], t[k]) / number
                total = total + criterion.dice_weight * dice(x[q], t[k]) / number
            for q, label in wanted.items():
                weight = 1.0 if label else criterion.no_object_weight
                surprise.append(-weight * logits.log_softmax(-1)[q, label])
                weights.append(weight)
        total = total + criterion.class_weight * torch.stack(surprise).sum() / sum(weights)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_gradients_equal_the_slow_reference(seed: int) -> None:
    prediction, targets = make(seed)
    losses = CRITERION(prediction, targets)
    expected = slow(CRITERION, prediction, targets)

    torch.testing.assert_close(losses.total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(losses.parts.values()), expected.detach(), rtol=1e-12, atol=0)
    found = torch.autograd.grad(losses.total, list(prediction))
    wanted = torch.autograd.grad(expected, list(prediction))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_a_batch_without_any_target_has_a_loss_and_finite_gradients() -> None:
    prediction, targets = make(0, counts=(0, 0, 0, 0))
    losses = CRITERION(prediction, targets)
    torch.testing.assert_close(losses.total, slow(CRITERION, prediction, targets))
    assert losses.parts["loss_mask"] == losses.parts["loss_dice"] == 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(losses.total, list(prediction)))


def test_void_pixels_take_no_part() -> None:
    prediction, targets = make(1)
    flipped = [torch.where(valid, masks, ~masks) for masks, valid in zip(targets.masks, targets.valid, strict=True)]
    other = Targets(targets.labels, flipped, targets.valid)
    found, same = CRITERION(prediction, targets), CRITERION(prediction, other)
    assert found.total == same.total
    (gradient,) = torch.autograd.grad(found.total, [prediction.mask_features])
    assert (gradient.permute(0, 2, 3, 1)[~targets.valid] == 0).all()


def test_an_image_that_is_all_void_counts_its_classes_only() -> None:
    prediction, targets = make(2, counts=(2, 0, 0, 0))
    losses = CRITERION(prediction, Targets(targets.labels, targets.masks, torch.zeros_like(targets.valid)))
    assert losses.total.isfinite()
    assert losses.parts["loss_mask"] == 0


def test_without_deep_supervision_only_the_last_layer_is_trained() -> None:
    prediction, targets = make(3)
    alone = Prediction(prediction.class_logits[-1:], prediction.mask_embeddings[-1:], prediction.mask_features)
    shallow = Criterion(deep_supervision=False)
    assert shallow(prediction, targets).total == Criterion()(alone, targets).total


def test_more_targets_than_queries_are_matched_as_far_as_queries_go() -> None:
    prediction, targets = make(4, counts=(QUERIES + 3, 1, 0, 2))
    losses = CRITERION(prediction, targets)
    torch.testing.assert_close(losses.total, slow(CRITERION, prediction, targets), rtol=1e-12, atol=0)


def test_a_network_that_diverged_gives_a_loss_that_says_so_and_no_crash() -> None:
    prediction, targets = make(5)
    broken = prediction._replace(mask_embeddings=prediction.mask_embeddings * math.nan)
    assert CRITERION(broken, targets).total.isnan()


def test_targets_of_another_size_are_refused_with_the_right_size() -> None:
    prediction, targets = make(6)
    with pytest.raises(ValueError, match=r"\(4, 9, 11\)"):
        CRITERION(prediction, Targets(targets.labels, targets.masks, targets.valid[:, :-1]))
    with pytest.raises(ValueError, match="masks of image 0"):
        CRITERION(prediction, Targets(targets.labels, [m[:, :, :-1] for m in targets.masks], targets.valid))


def test_the_weights_come_from_the_spec() -> None:
    spec = {
        "model": {
            "mask_former": {"class_weight": 1.0, "dice_weight": 3.0, "no_object_weight": 0.3, "deep_supervision": False}
        }
    }
    assert build(load("train", spec)) == Criterion(1.0, 5.0, 3.0, 0.3, deep_supervision=False)
