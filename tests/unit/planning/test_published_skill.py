"""The published skill's own examples, as overrides."""

from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import DatasetError, InvalidRequest


def said(plan: Any, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


_INTERVALS = {"train.num_epochs": 10, "train.checkpoint_interval": 10, "train.validation_interval": 10}
_CALIBRATION = "dataset.quant_calibration_dataset.images_dir"
PUBLISHED: dict[str, dict[str, Any]] = {  # the published skill's overrides of each action, beside the data sources
    "train": {"train.num_gpus": 1, **_INTERVALS, "dataset.contiguous_id": True},
    "evaluate": {"dataset.contiguous_id": True},
    "inference": {"dataset.contiguous_id": True},
    "quantize": {_CALIBRATION: "{train}/images.tar.gz"},
}


def published(action: str, data: Path) -> dict[str, Any]:
    """Its literal form: archive names, and the label map as a rule by format."""
    train, val = str(data / "shop" / "train"), str(data / "shop" / "val")
    sources = {
        "dataset.train.img_dir": f"{train}/images.tar.gz",
        "dataset.label_map": {"coco_panoptic": f"{train}/label_map_panoptic.json; *: label_map.json"},
        "dataset.train.instance_json": f"{train}/annotations.json",
        "dataset.train.panoptic_json": f"{train}/annotations_panoptic.json",
        "dataset.train.panoptic_dir": f"{train}/images_panoptic.tar.gz",
        "dataset.val.img_dir": f"{val}/images.tar.gz",
        "dataset.val.instance_json": f"{val}/annotations.json",
        "dataset.val.panoptic_json": f"{val}/annotations_panoptic.json",
        "dataset.val.panoptic_dir": f"{val}/images_panoptic.tar.gz",
        "dataset.test.img_dir": f"{val}/images.tar.gz",
    }
    own = {key: value.format(train=train) if key == _CALIBRATION else value for key, value in PUBLISHED[action].items()}
    return {**own, **sources}


@pytest.mark.parametrize("action", PUBLISHED)
def test_the_published_skills_own_overrides_are_understood(plan: Any, data: Path, trained: Any, action: str) -> None:
    weights = {} if action == "train" else {"parent_job_id": trained.job_id}
    made = plan(action, dataset_format="coco_panoptic", overrides=published(action, data), **weights)
    train, val = data / "shop" / "train", data / "shop" / "val"
    assert made.spec["dataset"]["label_map"] == f"{train}/label_map_panoptic.json"
    assert said(made, "repaired")
    expected = {
        "dataset.train.img_dir": f"{train}/images",
        "dataset.train.panoptic_json": f"{train}/annotations_panoptic.json",
        "dataset.train.panoptic_dir": f"{train}/images_panoptic",
        "dataset.val.img_dir": f"{val}/images",
        "dataset.val.panoptic_json": f"{val}/annotations_panoptic.json",
        "dataset.val.panoptic_dir": f"{val}/images_panoptic",
        "dataset.test.img_dir": f"{val}/images",
        "dataset.contiguous_id": True,
        "model.sem_seg_head.num_classes": 3,
        **({_CALIBRATION: f"{train}/images"} if action == "quantize" else {}),
    }
    assert expected.items() <= made.spec_overrides.items()
    assert "dataset.train.instance_json" not in made.spec_overrides


@pytest.mark.parametrize("action", ["train", "evaluate", "export", "inference"])
def test_the_published_skills_class_count_is_refused_with_the_right_one(
    plan: Any, data: Path, trained: Any, action: str
) -> None:
    sources = published(action, data) if action in PUBLISHED else {}
    weights = {} if action == "train" else {"parent_job_id": trained.job_id}
    with pytest.raises((DatasetError, InvalidRequest), match="num_classes=90 does not fit") as caught:
        plan(action, overrides={**sources, "model.sem_seg_head.num_classes": 90}, **weights)
    assert "set it to 3" in caught.value.fix
