"""Plans of trainings: intervals, overrides, backbones, weights to start from, the metric."""

from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import REQUESTS

GPUS = Machine(gpus=4, gpu_memory_gb=80.0, cpus=16, memory_gb=128.0)


def said(plan: Any, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("folder", "mode", "key"), [("coco", "instance", "instance_json"), ("ade", "semantic", "annot_file")]
)
def test_the_mode_follows_the_format_unless_said(plan: Any, data: Path, folder: str, mode: str, key: str) -> None:
    made = plan("train", train_dataset=str(data / folder), eval_dataset=str(data / folder))
    assert made.spec["model"]["mode"] == mode
    assert made.spec["dataset"]["train"][key].startswith(str(data / folder))
    assert said(made, "the same folder")


def test_intervals_are_clamped_with_a_warning(plan: Any, data: Path) -> None:
    made = plan(
        "train",
        train_dataset=str(data / "shop"),
        num_epochs=5,
        overrides={"train.checkpoint_interval": 10, "train.validation_interval": 10},
    )
    assert (made.spec["train"]["checkpoint_interval"], made.spec["train"]["validation_interval"]) == (5, 5)
    assert said(made, "train.checkpoint_interval=10 is more than train.num_epochs=5")


def test_intervals_default_to_one(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"))
    assert (made.spec["train"]["checkpoint_interval"], made.spec["train"]["validation_interval"]) == (1, 1)


def test_every_spelling_of_an_override_is_the_same_plan(plan: Any, data: Path) -> None:
    folder = str(data / "shop")
    plans = [
        plan("train", train_dataset=folder, num_epochs=7, learning_rate=0.001),
        plan("train", train_dataset=folder, overrides={"train.num_epochs": 7, "train.optim.lr": 0.001}),
        plan("train", train_dataset=folder, overrides={"train": {"num_epochs": 7, "optim": {"lr": 0.001}}}),
        plan("train", train_dataset=folder, overrides={"num_epochs": 7, "learning_rate": 0.001}),
        plan("train", train_dataset=folder, num_epochs=7, overrides={"num_epochs": 7, "train": {"optim.lr": 0.001}}),
    ]
    assert len({made.digest for made in plans}) == 1


def test_an_explicit_backbone_wins_over_the_presets(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), preset="mini", backbone="swin_small")
    assert made.spec["model"]["backbone"]["swin"]["type"] == "small"
    assert made.spec["model"]["backbone"]["swin"]["embed_dim"] == 96
    assert said(made, "backbone is left out")


def test_from_scratch_says_why_it_matters(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), pretrained_weights="")
    assert said(made, "from scratch")
    assert made.spec["model"]["backbone"]["pretrained_weights"] == ""
    assert [item.kind for item in made.staging] == []


def test_the_name_of_pretrained_weights_sets_the_window(plan: Any, data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "swin_base_patch4_window12_384_22k.pth"
    weights.write_bytes(b"swin")
    made = plan("train", train_dataset=str(data / "shop"), backbone="swin_base", pretrained_weights=str(weights))
    assert made.spec["model"]["backbone"]["swin"]["window_size"] == 12
    assert not said(made, "from scratch")
    with pytest.raises(InvalidRequest, match="window_size=7 does not fit"):
        plan(
            "train",
            train_dataset=str(data / "shop"),
            backbone="swin_base",
            pretrained_weights=str(weights),
            overrides={"model.backbone.swin.window_size": 7},
        )
    with pytest.raises(InvalidRequest, match="are of swin base"):
        plan("train", train_dataset=str(data / "shop"), pretrained_weights=str(weights))


def test_fsdp_forces_fp16_and_says_so(plan: Any, data: Path) -> None:
    overrides = {"train.distributed_strategy": "fsdp"}
    made = plan("train", machine=GPUS, train_dataset=str(data / "shop"), num_gpus=2, overrides=overrides)
    assert made.spec["train"]["precision"] == "fp16"
    assert said(made, "trains in fp16")
    assert made.spec["train"]["gpu_ids"] == [0, 1]
    alone = plan("train", machine=GPUS, train_dataset=str(data / "shop"), overrides=overrides)
    assert alone.spec["train"]["precision"] == "fp32"
    assert said(alone, "nothing to shard")


def test_efficientvit_plans_and_may_start(make_planner: Any, plan: Any, data: Path) -> None:
    arguments = {"train_dataset": str(data / "shop"), "backbone": "efficientvit_b0", "num_gpus": 2}
    made = plan("train", machine=GPUS, **arguments)
    assert made.spec["model"]["backbone"] | {} == made.spec["model"]["backbone"]
    assert made.spec["model"]["backbone"]["efficientvit"]["name"] == "b0"
    assert said(made, "sync_batchnorm")
    assert not said(made, "cannot start yet")
    make_planner(machine=GPUS).plan(REQUESTS["train"].model_validate(arguments))


def test_fine_tuning_starts_from_the_parents_weights(plan: Any, trained: Any, data: Path) -> None:
    made = plan("train", parent_job_id=trained.job_id, train_dataset=str(data / "other"), num_epochs=2)
    assert made.spec["train"]["pretrained_model_path"].endswith("model_epoch_001_step_00010.pth")
    assert made.spec["model"]["backbone"]["swin"]["embed_dim"] == 48
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 2
    assert not said(made, "from scratch")
    again = plan("train", parent_job_id=trained.job_id)
    assert again.datasets["train"]["uri"] == str(data / "shop" / "train")


def test_instances_are_judged_by_ap_and_everything_else_by_miou(plan: Any, data: Path) -> None:
    """In instance mode most pixels are unannotated, and mIoU over the others can be 1 with no object found."""
    assert plan("train", train_dataset=str(data / "coco")).metric == "AP"
    assert plan("train", train_dataset=str(data / "shop"), mode="instance").metric == "AP"
    assert plan("train", train_dataset=str(data / "shop")).metric == "mIoU"
    assert plan("train", train_dataset=str(data / "ade")).metric == "mIoU"


def test_a_search_over_instances_maximises_ap(plan: Any, data: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"automl.metric=mIoU is not measured with mode=instance"):
        plan("train", train_dataset=str(data / "coco"), automl_policy="on", automl={"metric": "mIoU"})


def test_classes_of_coco_annotations_are_measured_where_there_are_annotations(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "coco"), mode="semantic")
    assert made.metric == "mIoU"
    assert any("pixels outside all masks" in note for note in made.warnings)
