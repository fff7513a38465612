"""Requests that reach for what is not theirs: refused while planning, and nothing is read for them or written."""

from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import Mask2FormerError, NotFound

REACHING = ["/etc/passwd", "/etc", "/proc/self/environ", "/root/.ssh/id_rsa", "../../x", "{home}/config.toml", "~/.ssh"]
READ_KEYS = [
    "dataset.train.img_dir", "dataset.train.panoptic_json", "dataset.train.panoptic_dir", "dataset.val.img_dir",
    "dataset.label_map", "model.backbone.pretrained_weights", "train.pretrained_model_path",
    "train.resume_training_checkpoint_path",
]  # fmt: skip
WRITE_KEYS = ["results_dir", "train.results_dir"]
IMAGES = [
    "--privileged", "-v /:/host ubuntu", "ubuntu;id", "$(id)", "../ubuntu", "a b", "mask2former-engine",
    "nvcr.io/nvidia/tao/other:1", "ubuntu@sha256:" + "0" * 64,
]  # fmt: skip
RESULTS = ["/etc/m2f", "/proc/1", "/sys/m2f", "/dev/shm/m2f", "/run/m2f", "/root/.ssh/m2f", "/etc/../etc/x",
           "{home}", "{home}/jobs/train-other", "file:///etc", "http://169.254.169.254/x"]  # fmt: skip
FOLDERS = ["file:///etc", "http://169.254.169.254/latest", "s3://../", "s3://bucket/%2e%2e/x", "/proc/self", "/etc"]


def seen(home: Path) -> set[Path]:
    return {path for path in home.rglob("*") if "cache" not in path.parts} if home.exists() else set()


def refused(plan: Any, home: Path, **arguments: Any) -> Mask2FormerError:
    before = seen(home)
    with pytest.raises(Mask2FormerError) as raised:
        plan("train", platform="docker", **arguments)
    assert raised.value.fix
    assert "root:x:" not in str(raised.value)
    assert seen(home) == before
    return raised.value


@pytest.mark.parametrize("value", REACHING)
@pytest.mark.parametrize("key", [*READ_KEYS, *WRITE_KEYS])
def test_an_override_never_names_a_path_of_its_own(plan: Any, data: Path, home: Path, key: str, value: str) -> None:
    value = value.replace("{home}", str(home))
    refused(plan, home, train_dataset=str(data / "shop"), overrides={key: value})


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_only_if_the_operator_listed_it(plan: Any, data: Path, home: Path, image: str) -> None:
    assert "allow-list" in refused(plan, home, train_dataset=str(data / "shop"), image=image).message


@pytest.mark.parametrize("folder", RESULTS)
def test_results_go_to_no_folder_of_the_system_or_of_another_job(
    plan: Any, data: Path, home: Path, folder: str
) -> None:
    refused(plan, home, train_dataset=str(data / "shop"), results_dir=folder.replace("{home}", str(home)))


def test_a_link_to_a_folder_of_the_system_is_that_folder(plan: Any, data: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "innocent").symlink_to("/etc")
    refused(plan, home, train_dataset=str(data / "shop"), results_dir=str(tmp_path / "innocent" / "m2f"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_dataset_is_a_folder_with_data(plan: Any, home: Path, folder: str) -> None:
    refused(plan, home, train_dataset=folder)


def test_a_model_file_that_is_a_link_out_of_the_results_is_not_the_parents(
    plan: Any, exported: Any, tmp_path: Path
) -> None:
    (tmp_path / "private.onnx").write_bytes(b"word")
    model = exported.results_dir / "export" / "model.onnx"
    model.unlink()
    model.symlink_to(tmp_path / "private.onnx")
    with pytest.raises(NotFound, match=r"has no \*\.onnx file"):
        plan("gen_trt_engine", parent_job_id=exported.job_id)
