"""fp16 with shards: the only arithmetic of FSDP on GPUs, here over gloo with PyTorch's loss scaler for CPUs."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, distributed, nn
from torch.amp import GradScaler

from mask2former_mcp.engine import device, launch, sharding
from mask2former_mcp.engine.processes import Processes
from mask2former_mcp.engine.sharding import ShardedStrategy
from mask2former_mcp.spec.experiment import load

SCALE, LARGEST, STEPS = 2.0**10, 0.5, 3
BROKEN = 1  # the step in which one process has a gradient that is no number


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 2))


def batch(step: int, rank: int) -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(10 * step + rank))


def alone() -> list[dict[str, Tensor]]:
    """One process with both batches, in fp32, without the broken step."""
    model, found = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    for step in range(STEPS):
        if step != BROKEN:
            optimizer.zero_grad()
            torch.stack([model(batch(step, rank)).square().mean() for rank in (0, 1)]).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST)
            optimizer.step()
        found.append({name: value.clone() for name, value in model.state_dict().items()})
    return found


def main(folder: Path) -> None:
    """One of two processes."""
    scaler = GradScaler("cpu", init_scale=SCALE)
    fabric = Fabric(
        accelerator="cpu",
        devices=2,
        strategy=ShardedStrategy(process_group_backend="gloo"),
        plugins=[LightningEnvironment(), MixedPrecision("16-mixed", "cpu", scaler)],
    )
    fabric.launch()
    model = fabric.setup_module(network())
    plain = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    optimizer = fabric.setup_optimizers(plain)
    weights, scales = [], []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(model(batch(step, fabric.global_rank)).square().mean())
        if (step, fabric.global_rank) == (BROKEN, 1):  # in its own share alone
            next(model.parameters()).grad.to_local().fill_(float("inf"))
        device.clip_gradients(fabric, model, plain, LARGEST)
        optimizer.step()
        weights.append(sharding.whole(model.module.state_dict()))
        scales.append(scaler.get_scale())
    assert set(sharding.whole(model.module.state_dict(), keep=False).values()) == {None}
    torch.save((weights, scales), folder / f"{fabric.global_rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_a_gradient_that_is_no_number_in_one_share_is_skipped_by_all(tmp_path: Path) -> None:
    launch.run(Processes(each=2), [sys.executable, __file__, str(tmp_path)])
    for rank in (0, 1):
        weights, scales = torch.load(tmp_path / f"{rank}.pt")
        assert scales == [SCALE, SCALE / 2, SCALE / 2]
        for found, wanted in zip(weights, alone(), strict=True):
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=2e-3)
        assert all(torch.equal(weights[BROKEN][name], weights[0][name]) for name in weights[0])
        assert not torch.equal(weights[2]["0.weight"], weights[1]["0.weight"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_shards_on_gpus_train_in_half_precision_whatever_the_spec_says(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(device, "Fabric", lambda **settings: asked.update(settings))
    train = {"num_gpus": 2, "gpu_ids": [0, 1], "precision": precision, "distributed_strategy": "fsdp"}
    device.training(load("train", {"train": train}).train)
    assert asked["precision"] == "16-mixed"
    assert isinstance(asked["strategy"], ShardedStrategy)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
