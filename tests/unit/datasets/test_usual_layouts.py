"""Folders as exporters leave them: read where that is a matter of names, else recognised and told what to do."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mask2former_mcp.datasets import detect
from mask2former_mcp.datasets.check import check
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.errors import DatasetError


def ref(folder: Path) -> DatasetRef:
    return DatasetRef.parse(str(folder))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".jpg", ".png")):
            Image.new("RGB", (4, 4)).save(root / name)
        else:
            (root / name).write_text("{}")
    return root


@pytest.mark.parametrize(
    ("names", "what", "fix"),
    [
        (("Annotations/a.xml", "JPEGImages/a.jpg"), "Pascal VOC", "Convert"),
        (("data.yaml", "labels/a.txt", "images/a.jpg"), "YOLO", "YOLO-seg polygons"),
        (("a.jpg", "b.png"), "images without annotations", "inference works without them"),
        (("images/a.jpg",), "images without annotations", "Annotations are needed to train"),
        (("annotations/instances_train2017.json", "train2017/a.jpg"), "the official COCO release", "train/images -> "),
        (("shop.zip",), "a packed dataset", "Unpack it first"),
    ],
)
def test_a_usual_layout_is_called_by_its_name(tmp_path: Path, names: tuple[str, ...], what: str, fix: str) -> None:
    with pytest.raises(DatasetError, match=f"no annotation file of a known format; it looks like {what}") as caught:
        detect.detect_format(ref(touch(tmp_path, *names)))
    assert fix in caught.value.fix


def test_an_unknown_folder_looks_like_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        detect.detect_format(ref(touch(tmp_path, "notes.md")))
    assert "looks like" not in caught.value.message


def test_roboflows_export_is_read_as_it_is(shop: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    for part, name in (("train", "train"), ("val", "valid")):
        shutil.copytree(shop / part / "images", export / name)
        shutil.copy(shop / part / "annotations.json", export / name / "_annotations.coco.json")
    report = check(ref(export), home=tmp_path / "home")
    assert (report.ready, report.format, report.dataset) == (True, "coco", str(export / "train"))
    assert f"compared with {export / 'valid'}" in report.notes[0]


def test_cvats_export_is_read_as_it_is(shop: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    shutil.copytree(shop / "train" / "images", export / "images" / "default")
    (export / "annotations").mkdir()
    shutil.copy(shop / "train" / "annotations.json", export / "annotations" / "instances_default.json")
    report = check(ref(export), home=tmp_path / "home")
    assert (report.ready, report.format) == (True, "coco"), report.problems


def test_a_folder_of_train_alone_stands_for_it(shop: Path, tmp_path: Path) -> None:
    shutil.rmtree(shop / "val")
    assert detect.train_alone(ref(shop)) == ref(shop / "train")
    assert detect.train_alone(ref(shop / "train")) is None
    assert check(ref(shop), home=tmp_path / "home").dataset == str(shop / "train")


@pytest.mark.parametrize(("name", "how"), [("shop.zip", "unzip shop.zip"), ("shop.tar.gz", "tar -xf shop.tar.gz")])
def test_a_packed_dataset_is_to_be_unpacked_first(tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DatasetError, match="archive of a whole dataset") as caught:
        ref(tmp_path / name).folder()
    assert how in caught.value.fix


def test_one_image_is_no_dataset_but_for_inference(tmp_path: Path) -> None:
    picture = ref(touch(tmp_path, "a.jpg") / "a.jpg")
    assert picture.is_image
    with pytest.raises(DatasetError, match="is one image"):
        picture.folder()


def test_a_list_is_json_but_no_coco_file(shop: Path, tmp_path: Path) -> None:
    (shop / "train" / "annotations.json").write_text(json.dumps([1, 2, 3]))
    (problem, *_) = check(ref(shop / "train"), "coco", home=tmp_path / "home").problems
    assert problem["code"] == "bad_value"
    assert "not a COCO file" in problem["message"]


@pytest.mark.parametrize("nothing", [[], None])
def test_boxes_without_masks_are_said_once(shop: Path, tmp_path: Path, nothing: object) -> None:
    path = shop / "train" / "annotations.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = nothing
    path.write_text(json.dumps(content))
    report = check(ref(shop / "train"), "coco", home=tmp_path / "home")
    errors = [problem["message"] for problem in report.problems if problem["severity"] == "error"]
    assert errors == [f"{len(content['annotations'])} annotation(s) have only a box; segmentation needs masks"]


def test_splits_numbered_from_zero_are_one_line(shop: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        path = shop / part / "annotations.json"
        content = json.loads(path.read_text())
        for number, image in enumerate(content["images"]):
            (shop / part / "images" / image["file_name"]).rename(shop / part / "images" / f"{number:03d}.jpg")
            image["file_name"] = f"{number:03d}.jpg"
        path.write_text(json.dumps(content))
    report = check(ref(shop / "train"), "coco", home=tmp_path / "home", compare_with=ref(shop / "val"))
    (problem,) = [problem for problem in report.problems if problem["code"] == "same_name"]
    assert "file name(s) stand for another image in the other split, 000.jpg first" in problem["message"]
    assert report.by_code["same_name"] == 1
