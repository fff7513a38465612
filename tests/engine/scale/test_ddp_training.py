"""DDP over two nodes with two processes each equals one process with the same batch: losses, gradients, metrics."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mask2former_mcp.engine import checkpoint

Make, Run = Callable[..., dict[str, Any]], Callable[..., Any]
MEASURED_IN = {"dataset.val.batch_size": 3}  # 4 images: two batches, which do not divide among four processes
FIRST = "model_epoch_000_step_00002.pth"


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "train" / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in csv.DictReader(file)]


def content(folder: Path, name: str = checkpoint.LATEST) -> dict[str, Any]:
    return checkpoint.load(folder / "train" / name)


@pytest.fixture(scope="module")
def one(small: Make, alone: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, batch 4."""
    folder = tmp_path_factory.mktemp("one")
    assert alone("train", folder, small(**MEASURED_IN, dataset__train__batch_size=4)) == 0
    return folder


@pytest.fixture(scope="module")
def four(small: Make, together: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nodes, two processes each, batch 1."""
    folder = tmp_path_factory.mktemp("four")
    assert together("train", folder, small(**MEASURED_IN)) == [0, 0], (folder / "node0.log").read_text()
    return folder


def test_losses_and_gradients_are_those_of_one_process_with_the_whole_batch(
    one: Path, four: Path, same_training: Run
) -> None:
    for own, shared in zip(rows(one), rows(four), strict=True):
        assert shared["train_loss"] == pytest.approx(own["train_loss"], rel=1e-5)
    same_training(content(one), content(four))


def test_metrics_are_of_all_images_once_though_they_do_not_divide(one: Path, four: Path) -> None:
    assert [set(row) for row in rows(one)] == [set(row) for row in rows(four)]
    for own, shared in zip(rows(one), rows(four), strict=True):
        assert shared == pytest.approx(own, rel=1e-3, abs=2e-3)


def test_one_process_writes(one: Path, four: Path) -> None:
    names = [sorted(p.name for p in (f / "train").iterdir()) for f in (one, four)]
    assert names[0] == names[1]
    told = [json.loads(line) for line in (four / "train" / "status.json").read_text().splitlines()]
    assert [line["status"] for line in told].count("STARTED") == 1
    assert [line["status"] for line in told].count("SUCCESS") == 1
    assert [line["message"] for line in told].count("Eval metrics generated.") == 2
    assert [line["step"] for line in told if line["message"] == "Train metrics generated."] == [2, 4]
    spec = yaml.safe_load((four / "train" / "experiment.yaml").read_text())["train"]
    assert [spec["num_nodes"], spec["num_gpus"], spec["gpu_ids"]] == [2, 2, [0, 1]]
    assert "4 CPU processes on 2 nodes, ddp over gloo, fp32" in (four / "node0.log").read_text()


def test_another_number_of_processes_goes_on_to_the_same_weights(
    small: Make, alone: Run, same_training: Run, four: Path, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    shutil.copy(four / "train" / FIRST, tmp_path / "train" / FIRST)
    resumed = f"train.resume_training_checkpoint_path={tmp_path / 'train' / FIRST}"
    assert alone("train", tmp_path, small(**MEASURED_IN, dataset__train__batch_size=4), resumed) == 0
    same_training(content(four), content(tmp_path))
    assert alone("train", tmp_path, small(**MEASURED_IN), resumed) == 1
    assert (
        "2 steps an epoch of 4 images, the spec now gives 8 of 1: " in (tmp_path / "train" / "status.json").read_text()
    )


def test_two_processes_go_on_exactly_with_the_paths_that_each_drops(small: Make, together: Run, tmp_path: Path) -> None:
    spec = small(dataset__train__batch_size=2, model__backbone__swin__drop_path_rate=0.2)
    assert together("train", tmp_path, spec, nodes=1) == [0], (tmp_path / "node0.log").read_text()
    whole = content(tmp_path)
    resumed = f"train.resume_training_checkpoint_path={tmp_path / 'train' / FIRST}"
    assert together("train", tmp_path, spec, resumed, nodes=1) == [0], (tmp_path / "node0.log").read_text()
    again = content(tmp_path)
    for name, value in whole["state_dict"].items():
        assert torch.equal(again["state_dict"][name], value), name
    generators = whole["rng"]["torch"], whole["rng"]["others"][0]["torch"]
    assert not torch.equal(*generators)


def test_evaluation_shared_by_processes_writes_the_numbers_of_one(
    small: Make, alone: Run, together: Run, weights: Path, tmp_path: Path
) -> None:
    size = {"dataset.augmentation.test_min_size": 64, "dataset.augmentation.test_max_size": 64}
    spec = small(**{"evaluate.checkpoint": str(weights), **size})  # 4 batches of an image for 3 processes
    assert alone("evaluate", tmp_path / "one", spec) == 0
    shared = tmp_path / "three"
    assert together("evaluate", shared, spec, nodes=1, each=3) == [0], (shared / "node0.log").read_text()
    own, found = (
        json.loads((folder / "evaluate" / "metrics.json").read_text()) for folder in (tmp_path / "one", shared)
    )
    assert own["images"] == 4
    assert own["overall"]["mIoU"] > 0.2
    assert {"AP", "PQ", "val_loss"} <= own["overall"].keys()
    assert found == own  # each process measures whole batches of the single one
    panels = [sorted(os.listdir(folder / "evaluate" / "panels")) for folder in (tmp_path / "one", shared)]
    assert panels[0] == panels[1]
