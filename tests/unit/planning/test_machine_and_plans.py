"""What the machine, and the jobs that it has finished, say of a Plan."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp import bundle
from mask2former_mcp.lineage import Earlier
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.settings import Settings

GPUS = Machine(gpus=4, gpu_memory_gb=80.0, cpus=16, memory_gb=128.0)


def said(plan: Any, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


def test_mini_is_offered_where_a_default_network_takes_hours(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), num_epochs=500)
    assert made.estimate.seconds > 3600
    assert said(made, 'preset="mini"')
    mini = plan("train", train_dataset=str(data / "shop"), preset="mini")
    assert mini.estimate.seconds < 600
    assert not said(mini, "preset=")
    assert mini.spec["model"]["backbone"]["swin"]["embed_dim"] == 48
    assert mini.spec["model"]["sem_seg_head"]["num_classes"] == 3


def test_many_checkpoints_are_told_before_they_fill_the_disk(
    plan: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"train_dataset": str(data / "shop"), "preset": "mini"}
    monkeypatch.setattr("mask2former_mcp.planning.machine.free_gb", lambda folder: 1000.0)
    long = plan("train", **asked, num_epochs=400)
    assert said(long, f"the checkpoints will take about {long.estimate.disk_gb:.1f} GB, and 1000 GB are free")
    assert said(long, "a larger train.checkpoint_interval than 1 keeps fewer")
    assert not said(
        plan("train", **asked, num_epochs=400, overrides={"train.checkpoint_interval": 100}), "the checkpoints"
    )
    assert not said(plan("train", **asked, num_epochs=30), "the checkpoints")
    monkeypatch.setattr("mask2former_mcp.planning.machine.free_gb", lambda folder: 2.0)
    assert said(plan("train", **asked, num_epochs=30), "and 2 GB are free")


def test_hardware_guidance_is_a_warning(plan: Any, data: Path) -> None:
    assert said(plan("train", train_dataset=str(data / "shop")), "4 are recommended")
    small = Machine(gpus=1, gpu_memory_gb=11.0, cpus=8, memory_gb=32.0)
    made = plan("train", machine=small, train_dataset=str(data / "shop"))
    assert said(made, "24 GB or more")


@pytest.mark.parametrize(("gpus", "advised"), [(1, None), (2, 2), (8, 4)])
def test_no_more_gpus_are_recommended_than_the_machine_has(
    plan: Any, data: Path, gpus: int, advised: int | None
) -> None:
    machine = Machine(gpus=gpus, gpu_memory_gb=80.0, cpus=8, memory_gb=64.0)
    made = plan("train", machine=machine, train_dataset=str(data / "shop"))
    assert bool(said(made, "recommended")) == (advised is not None)
    assert advised is None or said(made, f"num_gpus={advised} is recommended")
    asked = plan("train", machine=machine, train_dataset=str(data / "shop"), num_gpus=1)
    assert not said(asked, "recommended")


def test_a_gpu_gets_as_many_loader_processes_as_its_cores_allow(
    plan: Any, make_planner: Any, data: Path, trained: Any
) -> None:
    train, one = str(data / "shop"), Machine(gpus=1, gpu_memory_gb=80.0, cpus=8, memory_gb=64.0)
    made = plan("train", machine=one, train_dataset=train)
    assert [made.spec["dataset"][split]["num_workers"] for split in ("train", "val", "test")] == [7, 7, 1]
    assert said(made, "dataset.train.num_workers and dataset.val.num_workers set to 7: 8 cores for 1 GPU(s)")
    assert made.spec_overrides["dataset.train.num_workers"] == 7
    assert plan("train", machine=GPUS, train_dataset=train).spec["dataset"]["train"]["num_workers"] == 3
    run = plan("inference", machine=replace(GPUS, cpus=64), parent_job_id=trained.job_id)
    assert run.spec["dataset"]["test"]["num_workers"] == 12
    asked_for = REQUESTS["train"].model_validate({"train_dataset": train, "platform": "docker", "dry_run": True})
    for cores, loaders in ((4.0, 3), (0.5, 1), (0.0, 7), (99.0, 7)):
        boxed = make_planner(machine=one, container_cpus=cores).plan(asked_for)
        assert boxed.spec["dataset"]["train"]["num_workers"] == loaders
    asked = plan("train", machine=one, train_dataset=train, overrides={"dataset.train.num_workers": 2})
    assert [asked.spec["dataset"][split]["num_workers"] for split in ("train", "val")] == [2, 7]
    for same in (plan("train", train_dataset=train), plan("train", machine=one, train_dataset=train, runtime="tao")):
        assert same.spec["dataset"]["train"]["num_workers"] == 1
        assert not said(same, "num_workers")


def test_a_driver_that_was_silent_once_is_asked_again(home: Path, shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, answers = replace(GPUS, gpus=0, gpu_memory_gb=None, trouble="it took more than 20 s"), GPUS
    found, now = iter([silent, answers]), [0.0]
    monkeypatch.setattr("mask2former_mcp.planning.machine.look", lambda *_: next(found))
    planner = Planner(bundle.load(), Settings(home=home), shelf, environ={}, clock=lambda: now[0])
    assert planner.machine == silent
    assert planner.machine == silent  # at once: no second wait in the same Plan
    now[0] = 60.0
    assert planner.machine == answers
    now[0] = 3600.0
    assert planner.machine == answers


def test_an_earlier_job_with_the_same_network_is_the_measure(plan: Any, data: Path, shelf: Any) -> None:
    first = plan("train", train_dataset=str(data / "shop"), preset="mini", num_epochs=2)
    shelf.history.append(Earlier("train-zzzz9999", first.spec, steps=100, seconds=50.0))
    made = plan("train", train_dataset=str(data / "shop"), preset="mini", num_epochs=4)
    assert made.estimate.basis == "seconds measured by train-zzzz9999; memory and disk by the model"
    assert made.estimate.seconds == pytest.approx(made.estimate.steps * 0.5)
    other = plan("train", train_dataset=str(data / "shop"), preset="mini", batch_size=4)
    assert "measured" not in other.estimate.basis


def test_tiny_jobs_are_no_measure_and_the_longest_is_the_best(plan: Any, data: Path, shelf: Any) -> None:
    asked = {"train_dataset": str(data / "shop"), "preset": "mini"}
    first = plan("train", num_epochs=2, **asked)
    shelf.history.append(Earlier("train-tiny0000", first.spec, steps=6, seconds=60.0, step_s=0.2))
    assert "measured" not in plan("train", num_epochs=4, **asked).estimate.basis
    shelf.history.append(Earlier("train-long0000", first.spec, steps=400, seconds=500.0, step_s=0.05))
    shelf.history.insert(0, Earlier("train-newer000", first.spec, steps=60, seconds=500.0, step_s=5.0))
    made = plan("train", num_epochs=400, **asked)
    assert made.estimate.basis == "seconds measured by train-long0000; memory and disk by the model"
    validation = made.estimate.seconds - 8 - made.estimate.steps * 0.05
    assert 0 < validation < 0.5 * made.estimate.seconds


def test_more_validation_images_take_longer_at_the_same_pace(plan: Any, data: Path, shelf: Any) -> None:
    asked = {"train_dataset": str(data / "shop" / "train"), "preset": "mini", "num_epochs": 40}
    few = plan("train", **asked, eval_dataset=str(data / "shop" / "val"))
    shelf.history.append(Earlier("train-zzzz9999", few.spec, steps=400, seconds=500.0, step_s=0.5))
    few, many = (plan("train", **asked, eval_dataset=str(data / name)) for name in ("shop/val", "alone"))
    assert few.estimate.basis == many.estimate.basis
    assert "measured by train-zzzz9999" in few.estimate.basis
    assert many.estimate.seconds > few.estimate.seconds
