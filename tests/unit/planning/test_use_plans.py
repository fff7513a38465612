"""Plans of `evaluate` and `inference`: which weights, which images."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mask2former_mcp.errors import DatasetError, InvalidRequest
from mask2former_mcp.lineage import Parent


def said(plan: Any, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


def test_evaluate_carries_the_parents_network_and_data(plan: Any, trained: Any, data: Path) -> None:
    made = plan("evaluate", parent_job_id=trained.job_id)
    assert made.checkpoint.epoch == 1
    assert made.checkpoint.metric == 0.55
    assert made.spec["evaluate"]["checkpoint"] == (
        "{home}/jobs/train-aaaa1111/results/train/model_epoch_001_step_00010.pth"
    )
    assert made.spec["model"]["backbone"] == trained.spec["model"]["backbone"]
    assert made.spec["model"]["mask_former"] == trained.spec["model"]["mask_former"]
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 3
    assert made.spec["dataset"]["augmentation"]["test_min_size"] == 192
    assert made.spec["dataset"]["val"]["img_dir"] == str(data / "shop" / "val" / "images")
    assert made.spec_overrides["dataset.contiguous_id"] is True
    assert made.spec_overrides["model.sem_seg_head.num_classes"] == 3
    assert made.automl.source == "action"
    assert made.estimate.steps == 5


@pytest.mark.parametrize(
    ("choice", "epoch"), [(None, 1), ("best", 1), ("latest", 2), ("epoch=0", 0), ("epoch=2,step=15", 2)]
)
def test_the_checkpoint_is_chosen_by_metric_or_as_asked(plan: Any, trained: Any, choice: str, epoch: int) -> None:
    made = plan("export", parent_job_id=trained.job_id, checkpoint=choice)
    assert made.checkpoint.epoch == epoch
    assert made.checkpoint.sha256
    assert made.checkpoint.reason


def test_inference_takes_a_plain_folder_of_images(plan: Any, trained: Any, data: Path) -> None:
    made = plan("inference", parent_job_id=trained.job_id, inference_dataset=str(data / "pictures"), threshold=0.7)
    assert made.spec["dataset"]["test"]["img_dir"] == str(data / "pictures")
    assert made.spec["dataset"]["label_map"] == str(data / "shop" / "train" / "label_map_panoptic.json")
    assert made.spec["model"]["object_mask_threshold"] == 0.7
    assert made.artifacts == ("inference/*",)


def test_inference_without_a_folder_uses_the_evaluation_images(plan: Any, trained: Any, data: Path) -> None:
    made = plan("inference", parent_job_id=trained.job_id)
    assert made.spec["dataset"]["test"]["img_dir"] == str(data / "shop" / "val" / "images")
    folder = data / "shop" / "val"
    assert said(
        made, f"no inference_dataset: the images of {folder} are segmented, which the network was validated on;"
    )
    named = plan("inference", parent_job_id=trained.job_id, eval_dataset=str(folder))
    assert not said(named, "no inference_dataset")


def test_an_export_is_measured_and_used_like_a_checkpoint(plan: Any, trained: Any, exported: Any) -> None:
    for action in ("evaluate", "inference"):
        made = plan(action, parent_job_id=exported.job_id)
        assert made.spec[action]["checkpoint"] == "{home}/jobs/export-bbbb2222/results/export/model.onnx"
        assert made.spec["model"]["mode"] == "panoptic"
        assert made.datasets["eval"]["uri"] == trained.datasets["eval"]["uri"]
        assert said(made, "runs in onnxruntime")
    with pytest.raises(InvalidRequest, match="a graph has one mode"):
        plan("evaluate", parent_job_id=exported.job_id, overrides={"model.mode": "semantic"})
    with pytest.raises(InvalidRequest, match="train job"):
        plan("export", parent_job_id=exported.job_id)


def test_an_engine_is_evaluated_in_its_mode_and_under_tao_only_a_semantic_one(
    plan: Any, exported: Any, ended: Any
) -> None:
    made = plan("gen_trt_engine", parent_job_id=exported.job_id)
    ended(made, "gen_trt_engine-eeee5555", "gen_trt_engine/model.engine")
    assert plan("evaluate", parent_job_id="gen_trt_engine-eeee5555").spec["model"]["mode"] == "panoptic"
    with pytest.raises(InvalidRequest, match="made from a panoptic export"):
        plan("evaluate", parent_job_id="gen_trt_engine-eeee5555", overrides={"model.mode": "semantic"})
    with pytest.raises(InvalidRequest, match="TAO's TensorRT evaluation needs an engine made from a semantic export"):
        plan("evaluate", parent_job_id="gen_trt_engine-eeee5555", runtime="tao")


def test_a_checkpoint_file_brings_the_spec_beside_it(plan: Any, trained: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "model_epoch_004_step_00050.pth"
    file.write_bytes(b"weights")
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(trained.spec))
    made = plan("evaluate", checkpoint=str(file), eval_dataset=str(data / "shop" / "val"))
    assert made.spec["model"]["backbone"]["swin"]["embed_dim"] == 48
    assert made.checkpoint.epoch == 4
    assert plan("export", checkpoint=str(file)).spec["model"]["sem_seg_head"]["num_classes"] == 3
    run = plan("inference", checkpoint=str(file), inference_dataset=str(data / "pictures"))
    assert run.spec["dataset"]["label_map"] == str(data / "shop" / "train" / "label_map_panoptic.json")


def test_a_bare_checkpoint_needs_the_class_count(plan: Any, tmp_path: Path, data: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    with pytest.raises(InvalidRequest, match="does not know how many classes"):
        plan("export", checkpoint=str(file))
    made = plan("export", checkpoint=str(file), overrides={"num_classes": 12})
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 12
    assert said(made, "nothing says what network")
    evaluated = plan("evaluate", checkpoint=str(file), eval_dataset=str(data / "shop" / "val"))
    assert evaluated.spec["model"]["sem_seg_head"]["num_classes"] == 3


def test_an_architecture_override_that_does_not_fit_is_refused(plan: Any, trained: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"hidden_dim=128 does not fit.*hidden_dim=64"):
        plan("export", parent_job_id=trained.job_id, overrides={"model.mask_former.hidden_dim": 128})


def test_a_plain_coco_export_needs_no_label_map(plan: Any, shelf: Any, home: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(data / "coco", folder, ignore=shutil.ignore_patterns("label_map.json"))
    made = plan("train", train_dataset=str(folder), preset="mini", pretrained_weights="")
    assert made.spec["dataset"]["label_map"] == "{job_dir}/derived/label_map.json"
    assert said(made, "has no label_map.json: it is written in the job's folder")
    assert [item.kind for item in made.staging] == ["label_map", "split"]
    results = home / "jobs" / "train-llll0000" / "results"
    (results / "train").mkdir(parents=True)
    (results / "train" / "model_epoch_000_step_00005.pth").write_bytes(b"w")
    shelf.jobs["train-llll0000"] = Parent("train-llll0000", "train", made.spec, results, {}, "failed", made.datasets)
    again = plan("evaluate", parent_job_id="train-llll0000", eval_dataset=str(data / "coco_val"))
    assert again.spec["dataset"]["label_map"] == "{job_dir}/derived/label_map.json"
    renamed = json.loads((data / "coco_val" / "annotations.json").read_text())
    renamed["categories"][0]["name"] = "conveyor"
    shutil.copytree(data / "coco_val", tmp_path / "renamed")
    (tmp_path / "renamed" / "annotations.json").write_text(json.dumps(renamed))
    with pytest.raises(DatasetError, match="conveyor"):
        plan("evaluate", parent_job_id="train-llll0000", eval_dataset=str(tmp_path / "renamed"))


def test_inference_takes_one_image(plan: Any, trained: Any, data: Path) -> None:
    made = plan("inference", parent_job_id=trained.job_id, inference_dataset=str(data / "pictures" / "one.png"))
    assert made.spec["dataset"]["test"]["img_dir"] == "{job_dir}/derived/pictures"
    assert [item.kind for item in made.staging] == ["copy"]
    assert made.estimate.steps == 1


def test_one_image_that_does_not_open_is_refused_by_its_own_name(plan: Any, trained: Any, tmp_path: Path) -> None:
    picture = tmp_path / "trunc.jpg"
    Image.new("RGB", (64, 64), (9, 80, 200)).save(picture)
    picture.write_bytes(picture.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=rf"^{picture}: not a readable image"):
        plan("inference", parent_job_id=trained.job_id, inference_dataset=str(picture))


def test_images_of_a_kind_that_is_not_read_are_told_before_inference(
    plan: Any, trained: Any, data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data / "pictures", tmp_path / "pictures"))
    assert not said(plan("inference", parent_job_id=trained.job_id, inference_dataset=str(folder)), "of a kind")
    (folder / "anim.gif").write_bytes(b"")
    made = plan("inference", parent_job_id=trained.job_id, inference_dataset=str(folder))
    assert said(made, "1 image file(s) are of a kind that is not read (1 .gif)")


def test_a_threshold_chooses_the_rows_of_the_instances_too(plan: Any, trained: Any) -> None:
    asked = {"parent_job_id": trained.job_id}
    assert plan("inference", **asked).spec["inference"]["min_score"] == 0.05
    said = plan("inference", **asked, threshold=0.7).spec
    assert said["inference"]["min_score"] == said["model"]["object_mask_threshold"] == 0.7
    both = plan("inference", **asked, overrides={"model.object_mask_threshold": 0.7, "inference.min_score": 0.2}).spec
    assert both["inference"]["min_score"] == 0.2
