"""Requests that are legal but inconvenient, and values that no setting can have."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.bundle import load
from mask2former_mcp.errors import DatasetError, InvalidRequest, Mask2FormerError, NotAvailable
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import load as load_spec

GPUS = Machine(gpus=4, gpu_memory_gb=80.0, cpus=16, memory_gb=128.0)


def said(plan: Any, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


# --- the preset for small machines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["shop", "alone", "coco", "ade", "swapped"])
@pytest.mark.parametrize("epochs", [6, 20])
def test_mini_plans_with_any_dataset(plan: Any, data: Path, folder: str, epochs: int) -> None:
    made = plan(
        "train",
        train_dataset=str(data / folder),
        preset="mini",
        num_epochs=epochs,
        overrides={"dataset.augmentation.train_crop_size": [160, 160]},
    )
    load_spec("train", made.spec)
    images = 20 if folder in ("shop", "alone") else 5
    assert 1 <= made.spec["dataset"]["train"]["batch_size"] <= max(8, images)
    assert made.estimate.steps >= epochs


def test_a_presets_batch_shrinks_to_the_data_but_a_batch_that_was_said_does_not(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "swapped"), preset="mini")  # 5 images, one of them held out
    assert made.spec["dataset"]["train"]["batch_size"] == 4
    assert made.spec_overrides["dataset.train.batch_size"] == 4
    assert said(made, "batch_size=8 is more than the 4 training image(s) fill: set to 4")
    shared = plan("train", train_dataset=str(data / "swapped"), preset="mini", machine=GPUS, num_gpus=2)
    assert shared.spec["dataset"]["train"]["batch_size"] == 2
    with pytest.raises(DatasetError, match="less than one step of 8"):
        plan("train", train_dataset=str(data / "swapped"), preset="mini", batch_size=8)


def test_the_estimate_of_mini_is_what_was_measured(plan: Any, data: Path) -> None:
    """0.25 to 0.35 s a step on two cores, at a batch of 8 and crops of 160 pixels."""
    crop = {"dataset.augmentation.train_crop_size": [160, 160], "train.iters_per_epoch": 150}
    times = [
        plan("train", train_dataset=str(data / "shop"), preset="mini", num_epochs=epochs, overrides=crop).estimate
        for epochs in (10, 20)
    ]
    per_step = (times[1].seconds - times[0].seconds) / (times[1].steps - times[0].steps)
    assert 0.2 < per_step < 0.4


def test_checkpoints_by_step_count_steps_on_the_disk(plan: Any, data: Path) -> None:
    arguments = {"train_dataset": str(data / "shop"), "preset": "mini", "num_epochs": 20}
    by_epoch = plan("train", **arguments)
    sparse = plan(
        "train", **arguments, overrides={"train.checkpoint_interval_unit": "step", "train.checkpoint_interval": 30}
    )
    assert by_epoch.estimate.steps == sparse.estimate.steps == 20 * 2  # of 20 images, whole steps of 8
    assert sparse.estimate.disk_gb < by_epoch.estimate.disk_gb / 5


# --- advice that must be true ----------------------------------------------------------------------------------------


def test_published_weights_are_advised_only_where_they_fit(plan: Any, data: Path) -> None:
    folder = str(data / "shop")
    advice = "pass pretrained_weights=<a local file of Swin base>"
    assert said(plan("train", train_dataset=folder, backbone="swin_base"), advice)
    mini = plan("train", train_dataset=folder, preset="mini")
    assert said(mini, "from scratch")
    assert not said(mini, "pretrained_weights=")


def test_milestones_matter_to_their_own_scheduler_only(plan: Any, data: Path) -> None:
    overrides = {"train.optim.milestones": [88, 96]}
    assert said(plan("train", train_dataset=str(data / "shop"), overrides=overrides), "never drops")
    assert not said(plan("train", train_dataset=str(data / "shop"), preset="mini", overrides=overrides), "never drops")


def test_more_memory_than_there_is_is_a_warning(plan: Any, data: Path) -> None:
    big = plan(
        "train", train_dataset=str(data / "shop"), overrides={"dataset.augmentation.train_crop_size": [4096, 4096]}
    )
    assert said(big, "GB of memory are needed, and this machine has 16 GB")
    assert not said(plan("train", train_dataset=str(data / "shop"), preset="mini"), "of memory are needed")


def test_a_hold_out_does_not_repeat_the_warnings_of_its_source(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "alone"))
    assert said(made, "the train dataset has 2 warning(s)")
    assert not said(made, "the eval dataset has")


def test_packed_ade_parts_are_not_called_missing(plan: Any, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "äda with spaces"
    shutil.copytree(data / "ade", folder)
    for part in ("images", "masks"):
        with tarfile.open(folder / f"{part}.tar.gz", "w:gz") as tar:
            tar.add(folder / part, part)
        shutil.rmtree(folder / part)
    made = plan("train", train_dataset=str(folder))
    assert said(made, "ADE reads images.tar.gz")
    assert not said(made, "has no images/")


# --- values and folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [2**53 + 1, 10**400, -(10**30)])
@pytest.mark.parametrize("key", ["train.num_epochs", "train.iters_per_epoch", "train.seed"])
def test_numbers_beyond_any_setting_are_refused(plan: Any, data: Path, key: str, value: int) -> None:
    with pytest.raises(InvalidRequest, match=key):
        plan("train", train_dataset=str(data / "shop"), overrides={key: value})


def test_a_fix_reads_as_a_sentence(plan: Any, data: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan("train", train_dataset=str(data / "shop"), overrides={"train.num_epochs": 2.5, "train.gpu_ids": []})
    assert "give train.num_epochs a value that is a whole number" in caught.value.fix
    assert "a value that has at least 1 item" in caught.value.fix


def test_data_keys_and_the_folder_above_them_name_the_same_data(plan: Any, data: Path) -> None:
    shop = data / "shop"
    keys = {"dataset.train.img_dir": f"{shop}/train/images", "dataset.val.img_dir": f"{shop}/val/images.tar.gz"}
    made = plan("train", train_dataset=str(shop), overrides=keys)
    assert made.digest == plan("train", train_dataset=str(shop)).digest
    with pytest.raises(InvalidRequest, match="lies in"):
        plan("train", train_dataset=str(shop), overrides={"dataset.train.img_dir": f"{shop}/val/images"})


@pytest.mark.parametrize("name", ["train_dataset", "results_dir", "checkpoint"])
@pytest.mark.parametrize("text", ["~nobodyhere/data/x.pth", "/" + 5000 * "x" + ".pth", "/etc/passwd/x.pth"])
def test_paths_that_no_file_system_has_are_clear_errors(plan: Any, data: Path, name: str, text: str) -> None:
    with pytest.raises(Mask2FormerError) as caught:
        plan("train", **{"train_dataset": str(data / "shop"), name: text})
    assert caught.value.fix


def test_one_folder_written_in_several_ways_is_one_plan(plan: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    ways = [str(data / "shop"), f"{data}/shop/", f"{data}/coco/../shop", "shop", "./shop/."]
    assert len({plan("train", train_dataset=way).digest for way in ways}) == 1


def test_the_images_of_an_inference_are_counted(plan: Any, trained: Any, data: Path) -> None:
    made = plan("inference", parent_job_id=trained.job_id, inference_dataset=str(data / "alone"))
    assert made.estimate.steps == 20
    assert made.estimate.seconds > 0


def test_evaluation_data_in_another_class_order_is_refused(plan: Any, trained: Any, data: Path) -> None:
    with pytest.raises(
        DatasetError, match=r'differ from the label map .*position 0: \[7, "belt"\] against \[3, "box"\]'
    ):
        plan("evaluate", parent_job_id=trained.job_id, eval_dataset=str(data / "swapped"))


def test_ade_classes_are_ids_so_only_their_set_must_agree(
    plan: Any, trained: Any, shelf: Any, data: Path, tmp_path: Path
) -> None:
    made = plan("train", train_dataset=str(data / "ade"), preset="mini")
    shelf.jobs["train-cccc1111"] = replace(trained, job_id="train-cccc1111", spec=made.spec, datasets=made.datasets)
    other = tmp_path / "other"
    shutil.copytree(data / "ade", other)
    labels = json.loads((other / "label_map.json").read_text())
    (other / "label_map.json").write_text(json.dumps(labels[::-1]))
    plan("evaluate", parent_job_id="train-cccc1111", eval_dataset=str(other))
    (other / "label_map.json").write_text(json.dumps([*labels[:-1], {**labels[-1], "id": 200}]))
    with pytest.raises(DatasetError, match="differ from the label map"):
        plan("evaluate", parent_job_id="train-cccc1111", eval_dataset=str(other))


def test_a_file_that_another_action_writes_is_asked_for_by_its_own_key(plan: Any, trained: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^quantize\.model_path takes a file of an export job"):
        plan(
            "quantize",
            parent_job_id=trained.job_id,
            backend="modelopt.onnx",
            quantize_mode="static_ptq",
            algorithm="max",
        )


@pytest.mark.parametrize("backend", ["modelopt.pytorch", "modelopt.onnx"])
def test_a_quantization_that_names_its_backend_alone_is_completed_and_says_so(
    plan: Any, trained: Any, exported: Any, backend: str
) -> None:
    parent = exported if backend == "modelopt.onnx" else trained
    made = plan("quantize", parent_job_id=parent.job_id, backend=backend)
    assert (made.spec["quantize"]["mode"], made.spec["quantize"]["algorithm"]) == ("static_ptq", "max")
    assert said(made, f"quantize.mode is set to static_ptq, as backend={backend} needs")
    assert said(made, f"quantize.algorithm is set to max, as backend={backend} needs (others: ")
    asked = plan("quantize", parent_job_id=parent.job_id, backend=backend, algorithm="awq_lite")
    assert (asked.spec["quantize"]["mode"], asked.spec["quantize"]["algorithm"]) == ("static_ptq", "awq_lite")
    assert not said(plan("quantize", parent_job_id=trained.job_id), "is set to")


def test_a_key_of_another_action_says_whose_it_is_and_where_to_pass_it(plan: Any, data: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan("train", train_dataset=str(data / "shop"), overrides={"export": {"opset_version": 17}})
    assert "export.opset_version=17 belongs to export" in caught.value.message
    assert caught.value.fix == "Leave export.opset_version out here, and pass it in the overrides of export."


def test_the_packaged_presets_are_legal_specs() -> None:
    for values in load().presets.values():
        load_spec("train", dotted.unflatten(values))


def test_a_plan_for_containers_needs_no_gpu_and_its_start_does(make_planner: Any, data: Path) -> None:
    asked = {"train_dataset": str(data / "shop"), "platform": "docker", "num_gpus": 2, "preset": "mini"}
    planner = make_planner()  # on a machine without a GPU
    made = planner.plan(REQUESTS["train"].model_validate({**asked, "dry_run": True}))
    assert made.spec["train"]["num_gpus"] == 2
    assert said(made, "cannot start yet: train.num_gpus=2, but platform=docker has no GPU")
    with pytest.raises(NotAvailable, match="num_gpus=2"):
        planner.plan(REQUESTS["train"].model_validate(asked))
