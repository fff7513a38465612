"""The step that a CUDA graph records, on the CPU with the kernels' references: it loses what the plain loop loses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

pytest.importorskip("triton", reason="Triton exists for Linux only")

from mask2former_mcp.engine import fast, fused_criterion, train
from mask2former_mcp.engine.kernels import deformable, mask_sums, matching, window
from mask2former_mcp.engine.model.pixel_decoder import DeformableAttention
from mask2former_mcp.engine.model.swin import WindowAttention
from mask2former_mcp.engine.run import Run, prepare
from mask2former_mcp.engine.step_graph import StepGraph
from mask2former_mcp.spec.experiment import load

STEPS = 20


def assign(cost: Tensor, counts: Tensor) -> Tensor:
    out = torch.full(cost.shape[:2], -1, dtype=torch.int32)
    for problem, count in enumerate(counts.tolist()):
        rows, columns = linear_sum_assignment(cost[problem, :count].cpu().numpy())
        out[problem, rows] = torch.from_numpy(columns).int()
    return out.to(cost.device)


def with_references(work: Run, monkeypatch: pytest.MonkeyPatch) -> StepGraph:
    monkeypatch.setattr(fused_criterion, "cost_sums", matching.cost_sums_reference)
    monkeypatch.setattr(fused_criterion, "mask_sums", mask_sums.reference)
    monkeypatch.setattr(fused_criterion, "assign", assign)
    work.criterion = fused_criterion.FusedCriterion(**vars(work.criterion))
    for module in work.model.module.modules():
        if isinstance(module, WindowAttention):
            module.fused = lambda qkv, padding, table, index, *how: window.reference(
                qkv, padding, window.tile_bias(table, index), *how
            )
        elif isinstance(module, DeformableAttention):
            module.fused = deformable.reference
    return StepGraph(work, compiled=False)


def test_the_step_of_the_graph_loses_what_the_plain_loop_loses(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "train.seed": 7,
        "train.num_epochs": 1,
        "train.iters_per_epoch": STEPS,
        "train.clip_grad_norm": 1.0,
        "model.backbone.swin.drop_path_rate": 0.0,
        "train.optim.lr": 2e-4,
    }
    plain_run = prepare(load("train", tiny(**settings)), tmp_path / "plain")
    plain_run.model.train()
    plain = [train.train_step(plain_run, batch) for batch in train._training_batches(plain_run)]
    quick_run = prepare(load("train", tiny(**settings)), tmp_path / "quick")
    quick_run.model.train()
    step = with_references(quick_run, monkeypatch)
    quick = []
    for batch in train._training_batches(quick_run):
        assert step.fits(batch)
        slots = step._upload(batch, step._number_of_slots(max(batch.counts)))
        for rate, group in zip(step.rates, quick_run.plain_optimizer.param_groups, strict=True):
            assert float(rate) == pytest.approx(group["lr"])
        quick.append(float(step._step(slots)))
        quick_run.schedule.step()
    assert len(plain) == STEPS
    assert quick[0] == pytest.approx(plain[0], rel=1e-5)
    assert quick == pytest.approx(plain, rel=5e-3)


def test_compiling_is_for_long_runs() -> None:
    assert not fast.repays_compiling(fast.STEP, 500, 8 * 640 * 640)[0]
    assert fast.repays_compiling(fast.STEP, 100_000, 8 * 640 * 640)[0]
