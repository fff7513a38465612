"""Parameter groups, schedules and freezing."""

import pytest
import torch
from torch import nn

from mask2former_mcp.engine import optim
from mask2former_mcp.spec.train import Optim


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(5))
        self.query = nn.Embedding(2, 4)
        self.head = nn.Linear(4, 2)


def test_norms_embeddings_and_tables_are_not_decayed_and_the_backbone_is_slower() -> None:
    model = Small()
    settings = Optim(lr=1e-3, backbone_multiplier=0.1, weight_decay=0.05)
    groups = {id(p): g for g in optim.optimizer(model, settings).param_groups for p in g["params"]}
    assert len(groups) == sum(1 for _ in model.parameters())

    def of(parameter: torch.Tensor) -> tuple[float, float]:
        group = groups[id(parameter)]
        return group["lr"], group["weight_decay"]

    assert of(model.backbone[0].weight) == (pytest.approx(1e-4), 0.05)
    assert of(model.backbone[1].weight) == (pytest.approx(1e-4), 0.0)
    assert of(model.backbone.relative_position_bias_table) == (pytest.approx(1e-4), 0.0)
    assert of(model.query.weight) == (pytest.approx(1e-3), 0.0)
    assert of(model.head.bias) == (pytest.approx(1e-3), 0.05)


def test_multi_step_falls_at_its_milestones() -> None:
    factor = optim.multi_step([10, 20], 0.1)
    assert [factor(step) for step in (0, 9, 10, 19, 20, 50)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warmup_poly_rises_then_falls_to_zero() -> None:
    factor = optim.warmup_poly(1000)
    values = [factor(step) for step in range(1001)]
    assert values[0] == pytest.approx(1e-3)
    assert max(range(1001), key=values.__getitem__) in range(45, 55)
    assert values[525] == pytest.approx((1 - 0.525) ** 0.9)
    assert values[1000] == 0


def test_the_rates_follow_the_schedule_in_every_group() -> None:
    settings = Optim(lr=1e-3, backbone_multiplier=0.5, milestones=(1,), gamma=0.1)
    optimizer = optim.optimizer(Small(), settings)
    schedule = optim.schedule(optimizer, settings, steps_per_epoch=2, total_steps=4)
    before = [g["lr"] for g in optimizer.param_groups]
    for _ in range(2):
        optimizer.step()
        schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * lr for lr in before])


def test_freezing_everything_is_an_error() -> None:
    model = Small()
    frozen, missing = optim.freeze(model, ["backbone", "query", "head", "neck"])
    assert (frozen, missing) == (["backbone", "query", "head"], ["neck"])
    with pytest.raises(ValueError, match=r"train\.freeze"):
        optim.optimizer(model, Optim())
