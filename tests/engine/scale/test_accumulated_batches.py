"""Several batches a step: the training of one batch as large as all of them together, however they are shared."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.engine import checkpoint, train
from mask2former_mcp.engine.run import prepare
from mask2former_mcp.spec.experiment import load

Make, Run = Callable[..., dict[str, Any]], Callable[..., Any]
TWICE = {"train.accumulate_grad_batches": 2}
SHARDED = {"train.distributed_strategy": "fsdp", "train.activation_checkpoint": True}


def content(folder: Path, name: str = checkpoint.LATEST) -> dict[str, Any]:
    return checkpoint.load(folder / "train" / name)


def losses(folder: Path) -> list[float]:
    with (folder / "train" / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(small: Make, alone: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, all 8 images in one batch."""
    folder = tmp_path_factory.mktemp("whole")
    assert alone("train", folder, small(dataset__train__batch_size=8)) == 0
    return folder


def test_two_batches_a_step_are_one_of_twice_the_size(
    small: Make, alone: Run, same_training: Run, whole: Path, tmp_path: Path
) -> None:
    assert alone("train", tmp_path, small(dataset__train__batch_size=4, **TWICE)) == 0
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-5)
    same_training(content(whole), content(tmp_path))


@pytest.mark.parametrize(("nodes", "batch", "more"), [(2, 1, {}), (1, 2, SHARDED)], ids=["ddp", "fsdp"])
def test_so_are_the_batches_of_several_processes(
    small: Make, together: Run, same_training: Run, whole: Path, tmp_path: Path, nodes: int, batch: int, more: Any
) -> None:
    spec = small(dataset__train__batch_size=batch, **TWICE, **more)
    assert together("train", tmp_path, spec, nodes=nodes) == [0] * nodes, (tmp_path / "node0.log").read_text()
    assert f"batch {batch} x {2 * nodes} processes x 2 a step" in (tmp_path / "node0.log").read_text()
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-5)
    same_training(content(whole), content(tmp_path))


def test_a_run_goes_on_with_steps_of_as_many_images_only(
    small: Make, alone: Run, same_training: Run, whole: Path, tmp_path: Path
) -> None:
    first = whole / "train" / "model_epoch_000_step_00001.pth"
    resumed = f"train.resume_training_checkpoint_path={first}"
    assert alone("train", tmp_path, small(dataset__train__batch_size=2, train__accumulate_grad_batches=4), resumed) == 0
    same_training(content(whole), content(tmp_path))
    # As many steps an epoch, of other images.
    fewer = small(dataset__train__batch_size=3, **TWICE, train__iters_per_epoch=1)
    assert alone("train", tmp_path, fewer, resumed) == 1
    said = json.loads((tmp_path / "train" / "status.json").read_text().splitlines()[-1])["message"]
    assert "1 steps an epoch of 8 images, the spec now gives 1 of 6" in said


def test_images_of_a_step_are_those_of_the_larger_batch(tiny: Make, tmp_path: Path) -> None:
    found = []
    for name, changes in (("one", {"dataset.train.batch_size": 4}), ("two", TWICE)):
        work = prepare(load("train", tiny(**changes)), tmp_path / name)
        work.state.step = 1  # as if resumed
        found.append([sorted(image for batch in share for image in batch.indices) for share in train._shares(work)])
    assert found[0] == found[1]
    assert len(found[0]) == 3
