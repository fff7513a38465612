"""Which files and folders training may start from: those that the engine reads, and no others."""

import json
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import InvalidRequest

CLASSES = {"model.sem_seg_head.num_classes": 3}


def write_transformers_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    swin = {"model_type": "swin", "embed_dim": 48, "depths": [1, 1, 2, 1], "num_heads": [3, 6, 12, 24]}
    content = {"model_type": "mask2former", "backbone_config": swin, "num_queries": 20, "hidden_dim": 64, **config}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_training_starts_from_each_kind_of_file_that_the_engine_reads(plan: Any, data: Path, tmp_path: Path) -> None:
    folder = write_transformers_folder(tmp_path / "mask2former")
    for name in ("tao.pth", "detectron2.pkl"):
        (tmp_path / name).write_bytes(b"weights")
    asked = {"train_dataset": str(data / "shop"), "preset": "mini"}
    for name in ("tao.pth", "detectron2.pkl", "mask2former"):
        made = plan("train", checkpoint=str(tmp_path / name), **asked)
        assert made.spec["train"]["pretrained_model_path"] == str(tmp_path / name)
        assert made.checkpoint is not None
        assert not any("from scratch" in note for note in made.warnings)
    assert made.spec["model"]["backbone"]["swin"]["depths"] == [1, 1, 2, 1]
    assert made.spec["model"]["mask_former"]["num_object_queries"] == 20
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 3
    assert any("config.json" in note for note in made.warnings)
    with pytest.raises(InvalidRequest, match=r"hidden_dim=128 does not fit"):
        plan("train", checkpoint=str(folder), overrides={"model.mask_former.hidden_dim": 128}, **asked)
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert plan("train", checkpoint=str(folder), **asked).digest != made.digest
    published = write_transformers_folder(tmp_path / "published", backbone_config={"model_type": "swin"})
    with pytest.raises(InvalidRequest, match=r"TAO reads \.pth and \.pkl"):
        plan("train", checkpoint=str(published), runtime="tao", platform="docker", train_dataset=str(data / "shop"))


@pytest.mark.parametrize("action", ["evaluate", "inference"])
def test_what_training_can_start_from_can_also_be_measured_and_run_as_it_is(
    plan: Any, data: Path, tmp_path: Path, action: str
) -> None:
    write_transformers_folder(tmp_path / "mask2former")
    (tmp_path / "detectron2.pkl").write_bytes(b"weights")
    for name in ("detectron2.pkl", "mask2former"):
        asked = {"checkpoint": str(tmp_path / name), "eval_dataset": str(data / "shop"), "overrides": CLASSES}
        made = plan(action, **asked)
        assert made.spec[action]["checkpoint"] == str(tmp_path / name)
    asked["checkpoint"] = str(tmp_path / "detectron2.pkl")
    with pytest.raises(InvalidRequest, match=r"TAO reads \.pth and"):
        plan(action, runtime="tao", platform="docker", **asked)
    assert made.spec["model"]["backbone"]["swin"]["depths"] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "detr"}'), '"detr"'),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'), "no "),
    ],
)
def test_a_folder_that_the_engine_could_not_read_is_refused(
    plan: Any, data: Path, tmp_path: Path, spoil: Any, complaint: str
) -> None:
    folder = write_transformers_folder(tmp_path / "mask2former")
    spoil(folder)
    with pytest.raises(InvalidRequest, match=complaint):
        plan("train", checkpoint=str(folder), train_dataset=str(data / "shop"))


def test_a_backbone_may_come_from_a_pickle_but_not_for_tao(plan: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "swin_tiny_patch4_window7_224.pkl"
    file.write_bytes(b"weights")
    made = plan("train", pretrained_weights=str(file), train_dataset=str(data / "shop"))
    assert made.spec["model"]["backbone"]["pretrained_weights"] == str(file)
    with pytest.raises(InvalidRequest, match=r"pretrained_weights=.*TAO reads \.pth"):
        plan("train", pretrained_weights=str(file), train_dataset=str(data / "shop"), runtime="tao", platform="docker")
