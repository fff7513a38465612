"""FSDP over two nodes with two processes each: the training of one process, the same files, exact resumption."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former_mcp.engine import checkpoint

Make, Run = Callable[..., dict[str, Any]], Callable[..., Any]
SHORT = {"train.iters_per_epoch": 1, "train.validation_interval": 2}
SHARDED = {"train.distributed_strategy": "fsdp", "train.activation_checkpoint": True, **SHORT}
FIRST = "model_epoch_000_step_00001.pth"


def content(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "train" / checkpoint.LATEST)


def losses(folder: Path) -> list[float]:
    with (folder / "train" / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


def test_sharded_training_is_that_of_one_process_and_resumes_exactly(
    small: Make, alone: Run, together: Run, same_training: Run, tmp_path: Path
) -> None:
    one, four = tmp_path / "one", tmp_path / "four"
    assert alone("train", one, small(dataset__train__batch_size=4, **SHORT)) == 0
    assert together("train", four, small(**SHARDED)) == [0, 0], (four / "node0.log").read_text()
    assert "4 CPU processes on 2 nodes, fsdp over gloo, fp32" in (four / "node0.log").read_text()
    assert losses(four) == pytest.approx(losses(one), rel=1e-5)
    own, sharded = content(one), content(four)
    same_training(own, sharded)
    assert own.keys() == sharded.keys()
    assert {n: v.shape for n, v in own["state_dict"].items()} == {n: v.shape for n, v in sharded["state_dict"].items()}
    assert own["metrics"].keys() == sharded["metrics"].keys()

    resumed = f"train.resume_training_checkpoint_path={four / 'train' / FIRST}"
    assert together("train", four, small(**SHARDED), resumed) == [0, 0], (four / "node0.log").read_text()
    again = content(four)
    for name, value in sharded["state_dict"].items():
        assert torch.equal(again["state_dict"][name], value), name
    before, after = (c["optimizer_states"][0]["state"] for c in (sharded, again))
    assert all(torch.equal(before[i][name], after[i][name]) for i in before for name in before[i])
