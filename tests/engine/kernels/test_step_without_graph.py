"""The step that a CUDA graph records, on the CPU with the kernels' references: it loses what the plain loop loses."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.optimize import linear_sum_assignment
from torch import Tensor, distributed

pytest.importorskip("triton", reason="Triton exists for Linux only")

from mask2former_mcp.engine import fast, fused_criterion, launch, step_graph, train
from mask2former_mcp.engine.kernels import deformable, mask_sums, matching, window
from mask2former_mcp.engine.model.pixel_decoder import DeformableAttention
from mask2former_mcp.engine.model.swin import WindowAttention
from mask2former_mcp.engine.processes import Processes
from mask2former_mcp.engine.run import Run, prepare
from mask2former_mcp.engine.step_graph import StepGraph
from mask2former_mcp.spec.experiment import load

STEPS = 20


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # to processes of their own


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
    monkeypatch.setattr(step_graph, "WARM_UP", STEPS)
    plain_run = prepare(load("train", tiny(**settings)), tmp_path / "plain")
    plain_run.model.train()
    plain = [train.step(plain_run, None, share) for share in train._shares(plain_run)]
    quick_run = prepare(load("train", tiny(**settings)), tmp_path / "quick")
    quick_run.model.train()
    graph = with_references(quick_run, monkeypatch)
    quick = []
    for share in train._shares(quick_run):
        rates = [group["lr"] for group in quick_run.plain_optimizer.param_groups]
        quick.append(train.step(quick_run, graph, share))
        assert [float(rate) for rate in graph.rates] == pytest.approx(rates)
    assert not graph.given_up
    assert len(plain) == STEPS
    assert quick[0] == pytest.approx(plain[0], rel=1e-5)
    assert quick == pytest.approx(plain, rel=5e-3)


def test_a_step_that_cannot_be_recorded_goes_launch_by_launch(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # A CPU records nothing: after the steps of warming up the recording fails, as it may on a GPU.
    settings = {"train.num_epochs": 1, "train.iters_per_epoch": step_graph.WARM_UP + 3, "train.clip_grad_norm": 1.0}
    losses: dict[str, list[float]] = {}
    for name in ("plain", "quick"):
        work = prepare(load("train", tiny(**settings, model__backbone__swin__drop_path_rate=0.0)), tmp_path / name)
        work.model.train()
        graph = with_references(work, monkeypatch) if name == "quick" else None
        losses[name] = [train.step(work, graph, share) for share in train._shares(work)]
    assert graph is not None
    assert graph.given_up
    assert losses["quick"] == pytest.approx(losses["plain"], rel=1e-3)
    assert "M2F_STEP_GRAPH=0" in (tmp_path / "quick" / "status.json").read_text()
    assert capsys.readouterr().out.count("the step could not be recorded") == 1


def test_images_with_more_targets_than_queries_are_no_graphs(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"train.num_epochs": 1, "train.iters_per_epoch": 6, "model.mask_former.num_object_queries": 3}
    losses: dict[str, list[float]] = {}
    for name in ("plain", "quick"):
        work = prepare(load("train", tiny(**settings, model__backbone__swin__drop_path_rate=0.0)), tmp_path / name)
        work.model.train()
        graph = with_references(work, monkeypatch) if name == "quick" else None
        losses[name] = [train.step(work, graph, share) for share in train._shares(work)]
    assert graph is not None
    assert not graph.warmed
    assert losses["quick"] == pytest.approx(losses["plain"], rel=1e-3)


def main(spec: Path, folder: Path) -> None:
    """One of two processes: warming up; the second in more slots, and failing to record before its fourth step."""
    work = prepare(load("train", yaml.safe_load(spec.read_text())), folder)
    first = work.group.rank == 0
    step_graph.LEAST_SLOTS, step_graph.WARM_UP = (1, STEPS) if first else (16, 3)
    work.model.train()
    graph = with_references(work, pytest.MonkeyPatch())
    losses, counts = [], []
    for share in train._shares(work):
        losses.append(train.step(work, graph, share))
        counts.append(sum(share[0].counts))
    found = {"losses": losses, "counts": counts, "slots": [*graph.slots], "weights": work.model.module.state_dict()}
    assert graph.given_up != first
    torch.save(found, folder / f"{work.group.rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_processes_step_as_one_with_the_whole_batch(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "train.num_epochs": 1,
        "train.iters_per_epoch": 6,
        "model.mask_former.num_object_queries": 20,
        "train.clip_grad_norm": 1.0,
        "model.backbone.swin.drop_path_rate": 0.0,
        "train.optim.lr": 2e-4,
    }
    alone = prepare(load("train", tiny(**settings, dataset__train__batch_size=4)), tmp_path / "alone")
    alone.model.train()
    losses = [train.step(alone, None, share) for share in train._shares(alone)]
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(tiny(**settings, train__num_gpus=2, train__gpu_ids=[0, 1])))
    monkeypatch.setenv(fast.GRAPH, "ddp")
    launch.run(Processes(each=2), [sys.executable, __file__, str(spec), str(tmp_path)])
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["losses"] == pytest.approx(losses, rel=1e-4)
    assert first["losses"] == second["losses"]
    assert first["counts"] != second["counts"]
    assert (first["slots"], second["slots"]) == ([8], [16])
    for name, value in alone.model.module.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], value, rtol=0, atol=3e-4)


def test_compiling_is_for_long_runs() -> None:
    assert not fast.repays_compiling(fast.STEP, 500, 8 * 640 * 640)[0]
    assert fast.repays_compiling(fast.STEP, 100_000, 8 * 640 * 640)[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
