"""What a Plan makes of folders of data: the table of sources, hold-outs, classes, images that are not there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import DatasetError
from mask2former_mcp.lineage import Parent
from mask2former_mcp.spec import dotted


def said(plan: Any, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


def test_a_train_plan_builds_the_whole_data_source_table(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"))
    train, val = data / "shop" / "train", data / "shop" / "val"
    expected = {
        "dataset.train.img_dir": f"{train}/images",
        "dataset.label_map": f"{train}/label_map_panoptic.json",
        "dataset.train.panoptic_json": f"{train}/annotations_panoptic.json",
        "dataset.train.panoptic_dir": f"{train}/images_panoptic",
        "dataset.val.img_dir": f"{val}/images",
        "dataset.val.panoptic_json": f"{val}/annotations_panoptic.json",
        "dataset.val.panoptic_dir": f"{val}/images_panoptic",
        "dataset.test.img_dir": f"{val}/images",
        "dataset.train.type": "coco_panoptic",
        "dataset.val.type": "coco_panoptic",
        "dataset.test.type": "coco_panoptic",
        "dataset.contiguous_id": True,
        "model.sem_seg_head.num_classes": 3,
        "model.mode": "panoptic",
        "results_dir": "{results_dir}",
    }
    assert expected.items() <= made.spec_overrides.items()
    assert all(dotted.get(made.spec, key) == value for key, value in expected.items())
    for split, folder in (("train", train), ("val", val)):
        key = f"dataset.{split}.instance_json"
        assert key not in made.spec_overrides
        assert said(made, f"left out, not in {folder}, and coco_panoptic does not read it here: {key}")
    assert "left out" in made.warnings[-1]
    assert made.command == ("mask2former", "train", "-e", "{job_dir}/spec.yaml")
    assert made.artifacts == ("train/model_epoch_*.pth",)
    assert made.automl.route == "automl"
    assert made.datasets["train"]["hashes"].keys() == {"annotations_panoptic.json", "label_map_panoptic.json"}


def test_val_beside_train_is_used_and_named(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"))
    assert made.datasets["eval"]["uri"] == str(data / "shop" / "val")
    assert said(made, str(data / "shop" / "val"))


def test_without_validation_data_a_tenth_is_held_out_and_named(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "alone"), pretrained_weights="")
    (staged,) = made.staging
    assert staged.kind == "split"
    assert staged.source == str(data / "alone" / "annotations_panoptic.json")
    assert made.spec["dataset"]["train"]["panoptic_json"] == "{job_dir}/holdout/train/annotations_panoptic.json"
    assert made.spec["dataset"]["val"]["panoptic_json"] == "{job_dir}/holdout/val/annotations_panoptic.json"
    assert made.spec["dataset"]["val"]["img_dir"] == str(data / "alone" / "images")
    assert made.datasets["eval"]["holdout"] == {"fraction": 0.1, "seed": 1234}
    assert said(made, "2 of 20 training images are held out")
    assert made.estimate.steps == 10 * 18


def test_annotations_that_a_hold_out_does_not_divide_are_left_out_with_a_note(
    plan: Any, data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data / "alone", tmp_path / "both"))
    shutil.copy(data / "coco" / "annotations.json", folder)
    made = plan("train", train_dataset=str(folder), pretrained_weights="")
    assert "dataset.train.instance_json" not in made.spec_overrides
    assert said(made, "coco_panoptic does not read: dataset.train.instance_json, dataset.val.instance_json")


def edited(data: Path, folder: Path, key: str) -> Path:
    """A copy of `alone` whose categories lack a key."""
    shutil.copytree(data / "alone", folder)
    path = folder / "annotations_panoptic.json"
    document = json.loads(path.read_text())
    for category in document["categories"]:
        del category[key]
    path.write_text(json.dumps(document))
    return folder


def test_each_category_that_is_at_fault_is_named(plan: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        plan("train", train_dataset=str(edited(data, tmp_path / "flat", "isthing")))
    for id_ in (7, 3, 11):
        assert f'categories: the required key "isthing" is missing (id {id_})' in caught.value.message


def test_categories_without_names_are_told_beside_other_warnings(plan: Any, data: Path, tmp_path: Path) -> None:
    made = plan("train", train_dataset=str(edited(data, tmp_path / "nameless", "name")))
    assert said(made, "categories [7, 3, 11] (3) have no name; keys found: id, isthing;")
    assert said(made, "class 'class_3' has no annotation")


def test_one_image_cannot_be_held_out(plan: Any, tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "single"
    (folder / "images").mkdir(parents=True)
    source = data / "alone"
    document = json.loads((source / "annotations_panoptic.json").read_text())
    document["annotations"] = document["annotations"][:1]
    (folder / "annotations_panoptic.json").write_text(json.dumps(document))
    (folder / "label_map_panoptic.json").write_text((source / "label_map_panoptic.json").read_text())
    (folder / "images_panoptic").mkdir()
    with pytest.raises(DatasetError, match="hold-out"):
        plan("train", train_dataset=str(folder))


def test_raw_ids_need_room_for_the_largest(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), contiguous_id=False)
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 11
    made = plan("train", train_dataset=str(data / "shop"), contiguous_id=False, num_classes=20)
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 20
    with pytest.raises(DatasetError, match=r"num_classes=10 .*largest category id, 11"):
        plan("train", train_dataset=str(data / "shop"), contiguous_id=False, num_classes=10)


def test_a_wrong_class_count_is_an_error_with_the_right_one(plan: Any, data: Path) -> None:
    with pytest.raises(DatasetError, match="num_classes=90 does not fit") as caught:
        plan("train", train_dataset=str(data / "shop"), num_classes=90)
    assert "3" in caught.value.fix


def test_categories_in_another_order_are_an_error(plan: Any, data: Path) -> None:
    with pytest.raises(DatasetError, match="differ at position 0"):
        plan("train", train_dataset=str(data / "shop" / "train"), eval_dataset=str(data / "swapped"))


def test_evaluate_on_other_data_must_have_the_same_classes(plan: Any, trained: Any, data: Path) -> None:
    made = plan("evaluate", parent_job_id=trained.job_id, eval_dataset=str(data / "alone"))
    assert made.spec["dataset"]["val"]["img_dir"] == str(data / "alone" / "images")
    with pytest.raises(DatasetError, match=r"has 2 classes, but the weights of train-aaaa1111 have 3"):
        plan("evaluate", parent_job_id=trained.job_id, eval_dataset=str(data / "other"))


def test_other_names_at_the_same_ids_are_other_classes(plan: Any, trained: Any, data: Path) -> None:
    with pytest.raises(DatasetError, match=r"differ .* at position 1: .*box.* against .*bottle"):
        plan("evaluate", parent_job_id=trained.job_id, eval_dataset=str(data / "renamed"))


def test_raw_ids_may_stand_in_any_order_but_mean_the_same(plan: Any, data: Path, shelf: Any, home: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), preset="mini", contiguous_id=False)
    results = home / "jobs" / "train-rrrr0000" / "results"
    (results / "train").mkdir(parents=True)
    (results / "train" / "model_epoch_000_step_00005.pth").write_bytes(b"w")
    shelf.jobs["train-rrrr0000"] = Parent("train-rrrr0000", "train", made.spec, results, {}, "failed", made.datasets)
    plan("evaluate", parent_job_id="train-rrrr0000", eval_dataset=str(data / "swapped"))
    with pytest.raises(DatasetError, match="a class is its id"):
        plan("evaluate", parent_job_id="train-rrrr0000", eval_dataset=str(data / "renamed"))


def test_a_parents_hold_out_is_made_again(plan: Any, shelf: Any, home: Path, data: Path) -> None:
    first = plan("train", train_dataset=str(data / "alone"), preset="mini")
    results = home / "jobs" / "train-hhhh0000" / "results"
    (results / "train").mkdir(parents=True)
    (results / "train" / "model_epoch_000_step_00005.pth").write_bytes(b"w")
    shelf.jobs["train-hhhh0000"] = Parent("train-hhhh0000", "train", first.spec, results, {}, "failed", first.datasets)
    made = plan("evaluate", parent_job_id="train-hhhh0000")
    assert made.staging == first.staging or made.staging[0].options == first.staging[0].options
    assert made.spec["dataset"]["val"]["panoptic_json"] == "{job_dir}/holdout/val/annotations_panoptic.json"
    assert made.estimate.steps == 2
    assert said(made, "ended as failed")
    run = plan("inference", parent_job_id="train-hhhh0000")
    assert run.spec["dataset"]["test"]["img_dir"] == str(data / "alone" / "images")
    assert said(run, f"the images of {data / 'alone'} are segmented, which the network was trained and validated on;")


def test_a_folder_that_only_holds_train_gets_a_hold_out(plan: Any, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "alone", tmp_path / "only" / "train")
    made = plan("train", train_dataset=str(tmp_path / "only"))
    assert made.datasets["train"]["uri"] == str(tmp_path / "only" / "train")
    assert said(made, "2 of 20 training images are held out")


@pytest.mark.parametrize("dataset_format", ["alone", "coco", "ade"])
def test_a_missing_image_is_named_before_anything_starts(
    plan: Any, data: Path, tmp_path: Path, dataset_format: str
) -> None:
    folder = Path(shutil.copytree(data / dataset_format, tmp_path / "shop"))
    plan("train", train_dataset=str(folder))
    (folder / "images" / "0003.png").unlink()  # the annotations, and their cached facts, stay as they are
    with pytest.raises(DatasetError, match=r"1 image\(s\) that the train annotations name .*0003\.png"):
        plan("train", train_dataset=str(folder))


def test_a_handful_of_validation_images_is_said_to_be_noise(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"))
    assert "only 5 validation image(s): the metric is mostly noise" in made.warnings[0]
    many = plan("train", train_dataset=str(data / "shop" / "train"), eval_dataset=str(data / "alone"))
    assert not said(many, "mostly noise")
