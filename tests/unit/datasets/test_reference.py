import shutil
from pathlib import Path

import pytest

from mask2former_mcp.datasets import detect
from mask2former_mcp.datasets.reference import DatasetRef, Place, find
from mask2former_mcp.errors import DatasetError, InvalidRequest, NotAvailable


def local(path: Path) -> DatasetRef:
    return DatasetRef.parse(str(path))


def test_local_paths_become_absolute_and_s3_prefixes_lose_the_slash() -> None:
    assert DatasetRef.parse("data/x").uri == str(Path("data/x").absolute())
    assert DatasetRef.parse("~/x").uri == str(Path("~/x").expanduser())
    assert DatasetRef.parse("s3://bucket/a/b/") == DatasetRef("s3://bucket/a/b", "s3")


@pytest.mark.parametrize("text", ["", "  ", "http://x/y", "gs://b/p", "file:///data", "s3://", "s3://B_d/x", "a\0b"])
def test_other_schemes_and_malformed_buckets_are_refused_with_the_rule(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        DatasetRef.parse(text)
    assert "s3://bucket/prefix" in caught.value.fix


def test_what_lies_in_s3_cannot_be_opened_yet() -> None:
    with pytest.raises(NotAvailable):
        DatasetRef.parse("s3://bucket/x").folder()


def test_a_missing_folder_names_what_is_there(shop: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist") as caught:
        local(shop / "trian" / "deep").folder()
    assert "train/" in caught.value.fix
    with pytest.raises(DatasetError, match="is a file"):
        local(shop / "train" / "annotations.json").folder()


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [("anim.gif", "an image of a kind that is not read", "Convert it to one of"), ("a.txt", "is a file", "one image")],
)
def test_a_file_that_is_no_image_to_read_is_told_the_kinds(tmp_path: Path, name: str, message: str, fix: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DatasetError, match=message) as caught:
        local(tmp_path / name).folder()
    assert fix in caught.value.fix
    assert ".bmp, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp" in caught.value.fix


def test_the_extracted_folder_wins_over_the_archive(shop: Path) -> None:
    train = shop / "train"
    (train / "images.zip").write_bytes(b"")
    assert find(local(train), "images.tar.gz") == Place(train / "images", "folder")
    shutil.rmtree(train / "images")
    assert find(local(train), "images.tar.gz") == Place(train / "images.zip", "archive")
    (train / "images").mkdir()
    assert find(local(train), "images.tar.gz") == Place(train / "images.zip", "archive")
    assert find(local(train), "images_other.tar.gz") is None


def test_a_nested_root_is_entered_until_the_annotations_file_is_found(shop: Path) -> None:
    images = shop / "train" / "images"
    images.rename(shop / "train" / "train2017")
    images.mkdir()
    (shop / "train" / "train2017").rename(images / "train2017")
    ref, inner = local(shop / "train"), images / "train2017"
    assert find(ref, "images.tar.gz", expects="train_00000.jpg") == Place(inner, "folder")
    assert find(ref, "images.tar.gz", expects="train2017/train_00000.jpg") == Place(images, "folder")
    assert find(ref, "images.tar.gz") == Place(inner, "folder")


def test_the_format_is_found_by_the_annotation_file(shop: Path) -> None:
    assert detect.detect_format(local(shop)) == "coco_panoptic"
    (shop / "train" / "annotations_panoptic.json").unlink()
    assert detect.detect_format(local(shop / "train")) == "coco"
    with pytest.raises(DatasetError, match=r"images/"):
        detect.detect_format(local(shop / "test"))


def test_ade_is_found_by_its_lines(ade_shop: Path) -> None:
    assert detect.detect_format(local(ade_shop / "val")) == "ade"


def test_train_and_val_are_found_in_the_folder_or_beside_it(shop: Path) -> None:
    pair = (local(shop / "train"), local(shop / "val"))
    assert detect.split(local(shop)) == pair
    assert detect.split(local(shop / "train")) == pair
    assert detect.split(local(shop / "val")) is None
    shutil.rmtree(shop / "val")
    assert detect.split(local(shop)) is None
    assert detect.split(DatasetRef.parse("s3://bucket/train")) is None
