"""Real training processes: a signal to one of them, the death of one, and a loss that is no number."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mask2former_mcp.engine import checkpoint, interruption
from mask2former_mcp.engine.group import Group
from mask2former_mcp.engine.train import _agreed

Make, Run = Callable[..., dict[str, Any]], Callable[..., Any]
WAIT_S = 90
LONG = {"train.num_epochs": 400, "train.validation_interval": 400, "train.checkpoint_interval": 400}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train" / "status.json").read_text().splitlines()]


def wait_for_steps(folder: Path) -> None:
    status, end = folder / "train" / "status.json", time.monotonic() + WAIT_S
    while not (status.exists() and "Training loop in progress" in status.read_text()):
        assert time.monotonic() < end, (folder / "node0.log").read_text()
        time.sleep(0.05)


def last_rank(node: int) -> int:
    """The pid of the second process of a node's command."""
    found = [child for child in psutil.Process(node).children() if child.environ().get("LOCAL_RANK") == "1"]
    return int(found[0].pid)


def test_a_signal_to_any_process_saves_what_all_can_resume(
    small: Make, started: Run, alone: Run, tmp_path: Path
) -> None:
    spec = small(**LONG, **{"train.distributed_strategy": "fsdp"})
    with started("train", tmp_path, spec, nodes=2, each=2) as commands:
        wait_for_steps(tmp_path)
        os.kill(last_rank(commands[1].pid), signal.SIGTERM)
        assert [command.wait(WAIT_S) for command in commands] == [143, 143]
    assert [line["message"] for line in lines(tmp_path)[-2:]] == [
        "Saved a checkpoint to resume from.",
        "Train interrupted by SIGTERM.",
    ]
    latest = tmp_path / "train" / checkpoint.LATEST
    step = checkpoint.load(latest)["global_step"]
    assert 0 < step < 800
    more = [f"train.resume_training_checkpoint_path={latest}", f"train.num_epochs={step // 2 + 1}"]
    assert alone("train", tmp_path, small(dataset__train__batch_size=4), *more) == 0


def test_the_death_of_one_process_ends_all_with_the_cause(small: Make, started: Run, tmp_path: Path) -> None:
    with started("train", tmp_path, small(**LONG), nodes=2, each=2) as commands:
        wait_for_steps(tmp_path)
        children = [child for command in commands for child in psutil.Process(command.pid).children()]
        os.kill(last_rank(commands[1].pid), signal.SIGKILL)
        assert [command.wait(WAIT_S) for command in commands] == [1, 1]
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    last = lines(tmp_path)[-1]
    assert last["status"] == "FAILURE"
    assert "a process was killed by SIGKILL" in last["message"]
    assert "(process 4 of 4, node 1)" in last["message"]


def test_a_loss_that_is_no_number_stops_all_processes(small: Make, alone: Run, together: Run, tmp_path: Path) -> None:
    assert alone("train", tmp_path / "a", small(train__is_dry_run=True)) == 0
    content = checkpoint.load(tmp_path / "a" / "train" / checkpoint.LATEST)
    broken = {
        name: value.fill_(float("nan")) if "mask_embed" in name else value
        for name, value in content["state_dict"].items()
    }
    torch.save({"state_dict": broken}, tmp_path / "nan.pth")
    pretrained = f"train.pretrained_model_path={tmp_path / 'nan.pth'}"
    assert together("train", tmp_path / "b", small(), pretrained, nodes=1) == [1]
    message = lines(tmp_path / "b")[-1]["message"]
    assert "the loss is nan at step 0" in message
    assert message.count(".png") == 2  # the batch of each process
    assert not list((tmp_path / "b" / "train").glob("*.pth"))


def test_the_images_of_the_process_with_the_bad_loss_are_named() -> None:
    class Second(Group):
        """The second of two, whose first has a loss that is a number, and has been sent a signal."""

        def numbers(self, own: Sequence[float]) -> list[Sequence[float]]:
            return [[2.0, 15], own]

        def things(self, own: Any) -> list[Any]:
            return [[], own]

        def from_first(self, own: Any) -> Any:
            return own

    class Work:
        group = Second()
        state = type("State", (), {"step": 7})
        asked = interruption.Request(agree=group.largest)

    batch = type("Batch", (), {"names": ["/data/b.png"]})
    assert _agreed(4.0, Work, (batch,)) == 3.0  # type: ignore[arg-type]
    with pytest.raises(interruption.Interrupted, match="SIGTERM"):
        Work.asked.obey(at_step=True)
    with pytest.raises(FloatingPointError, match=r"the loss is inf at step 7 \(images: b.png\)"):
        _agreed(float("inf"), Work, (batch,))  # type: ignore[arg-type]
