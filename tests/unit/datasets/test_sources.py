import json
import shutil
import tarfile
from pathlib import Path

import pytest

from mask2former_mcp import bundle
from mask2former_mcp.data_source import DataSource
from mask2former_mcp.datasets import sources
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats import label_map
from mask2former_mcp.staging import archives, prepare


def folders(shop: Path) -> dict[str, DatasetRef]:
    named = {"train_datasets": "train", "eval_dataset": "val", "inference_dataset": "test"}
    return {source: DatasetRef.parse(str(shop / part)) for source, part in named.items()}


def rows(action: str) -> tuple[DataSource, ...]:
    return bundle.load().data_sources(action)


def pack(folder: Path, root: str = ".") -> Path:
    archive = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, root)
    shutil.rmtree(folder)
    return archive


def test_every_row_of_the_table_becomes_an_existing_path(shop: Path) -> None:
    for action in ("train", "evaluate", "inference", "quantize"):
        found = sources.resolve(rows(action), folders(shop), "coco_panoptic")
        assert {r.key for r in rows(action) if not r.exclusive} == set(found.values)
        assert all(Path(value).exists() for value in found.values.values())
        assert found.staging == ()
    assert found.values["dataset.label_map"].endswith("label_map_panoptic.json")


def test_the_label_map_follows_the_format(shop: Path) -> None:
    found = sources.resolve(rows("train"), folders(shop), "coco")
    assert found.values["dataset.label_map"] == str(shop / "train" / "label_map.json")


def test_a_file_that_the_format_reads_must_be_there(shop: Path) -> None:
    (shop / "train" / "annotations_panoptic.json").unlink()
    with pytest.raises(DatasetError, match=r"annotations_panoptic\.json.*it holds: annotations\.json"):
        sources.resolve(rows("train"), folders(shop), "coco_panoptic")


def test_missing_masks_are_called_as_a_folder_first_and_no_label_map_is_asked_for(shop: Path) -> None:
    shutil.rmtree(shop / "train" / "images_panoptic")
    with pytest.raises(DatasetError, match=r"has no images_panoptic/ or images_panoptic\.tar\.gz, which") as caught:
        sources.resolve(rows("train"), folders(shop), "coco_panoptic")
    assert caught.value.fix.startswith(
        "Format coco_panoptic needs annotations_panoptic.json, images/ or images.tar.gz, images_panoptic/ or "
        "images_panoptic.tar.gz. "
    )


def test_a_file_that_the_format_does_not_read_is_left_out_with_a_note(shop: Path) -> None:
    (shop / "train" / "annotations.json").unlink()
    found = sources.resolve(rows("train"), folders(shop), "coco_panoptic")
    assert "dataset.train.instance_json" not in found.values
    assert "dataset.val.instance_json" in found.values
    note = f"left out, not in {shop / 'train'}, and coco_panoptic does not read it here: dataset.train.instance_json"
    assert found.notes == (note,)


def test_a_label_map_that_is_missing_is_written_by_the_job(shop: Path, tmp_path: Path) -> None:
    given = json.loads((shop / "train" / "label_map.json").read_text())
    (shop / "train" / "label_map.json").unlink()
    found = sources.resolve(rows("train"), folders(shop), "coco")
    assert found.values["dataset.label_map"] == "{job_dir}/derived/label_map.json"
    assert "written in the job's folder from the categories of annotations.json" in found.notes[0]
    places = prepare.stage(found.staging, home=tmp_path, job_dir=tmp_path / "job")
    made = label_map.read(Path(places["{job_dir}/derived/label_map.json"]))
    assert [(label.id, label.name) for label in made] == [(row["id"], row["name"]) for row in given]


def test_ade_needs_its_label_map(ade_shop: Path) -> None:
    (ade_shop / "train" / "label_map.json").unlink()
    with pytest.raises(DatasetError, match=r"no label_map\.json"):
        sources.resolve(rows("train"), folders(ade_shop), "ade")


def test_one_image_becomes_a_folder_of_the_job(shop: Path, tmp_path: Path) -> None:
    picture = shop / "test" / "images" / "test_00000.jpg"
    given = {**folders(shop), "inference_dataset": DatasetRef.parse(str(picture))}
    found = sources.resolve(rows("inference"), given, "coco_panoptic")
    places = prepare.stage(found.staging, home=tmp_path, job_dir=tmp_path / "job")
    folder = Path(places[found.values["dataset.test.img_dir"]])
    assert [path.read_bytes() for path in folder.iterdir()] == [picture.read_bytes()]


def test_a_folder_without_images_to_look_at_is_not_asked_for_annotations(shop: Path) -> None:
    given = {**folders(shop), "inference_dataset": DatasetRef.parse(str(shop))}
    with pytest.raises(DatasetError, match=r"holds no images; it holds: .*train/, val/") as caught:
        sources.resolve(rows("inference"), given, "coco_panoptic")
    assert "annotations.json" not in caught.value.fix


def test_a_source_that_nobody_named_is_left_out_with_a_note(shop: Path) -> None:
    given = folders(shop)
    del given["train_datasets"]
    found = sources.resolve(rows("evaluate"), given, "coco_panoptic")
    assert "dataset.train.img_dir" not in found.values
    assert any("train_datasets" in note for note in found.notes)


def test_an_archive_is_extracted_once_for_all_keys_that_hold_it(shop: Path, tmp_path: Path) -> None:
    archive = pack(shop / "val" / "images", "val2017")
    found = sources.resolve(rows("train"), folders(shop), "coco_panoptic")
    (item,) = found.staging
    place = "{home}/" + archives.cache_place(archive)
    assert found.values["dataset.val.img_dir"] == found.values["dataset.test.img_dir"] == place
    assert item["keys"] == ("dataset.val.img_dir", "dataset.test.img_dir")
    real = prepare.stage(found.staging, home=tmp_path / "home", job_dir=tmp_path)[place]
    assert Path(real, "val_00000.jpg").is_file()


def test_what_lies_in_s3_is_a_path_in_its_mirror_and_fetched_first(shop: Path) -> None:
    ref = DatasetRef("s3://bucket/data", "s3", shop).child("train")
    found = sources.resolve(rows("train"), {"train_datasets": ref, "eval_dataset": ref}, "coco")
    assert found.values["dataset.train.img_dir"] == str(shop / "train" / "images")
    first = found.staging[0]
    assert (first["kind"], first["source"], first["target"]) == ("fetch", "s3://bucket/data", str(shop))
    assert {"train/images/", "train/annotations.json", "train/label_map.json"} <= set(first["options"]["parts"])


def test_a_plain_folder_of_images_serves_inference(shop: Path) -> None:
    given = {"inference_dataset": DatasetRef.parse(str(shop / "test" / "images"))}
    found = sources.resolve([r for r in rows("inference") if r.source in given], given, "coco_panoptic")
    assert found.values == {"dataset.test.img_dir": str(shop / "test" / "images")}


def test_ade_reads_through_its_root(ade_shop: Path) -> None:
    found = sources.resolve(rows("train"), folders(ade_shop), "ade")
    assert found.values["dataset.train.root_dir"] == str(ade_shop / "train")
    assert found.values["dataset.val.annot_file"] == str(ade_shop / "val" / "annotations.jsonl")


def test_ade_archives_are_laid_side_by_side(ade_shop: Path, tmp_path: Path) -> None:
    pack(ade_shop / "train" / "images", "images")
    with pytest.raises(DatasetError, match=r"masks/ as a folder and images\.tar\.gz as an archive"):
        sources.resolve(rows("train"), folders(ade_shop), "ade")
    pack(ade_shop / "train" / "masks", "some/where")
    found = sources.resolve(rows("train"), folders(ade_shop), "ade")
    prepare.stage(found.staging, home=tmp_path / "home", job_dir=tmp_path)
    root = prepare.real(found.values["dataset.train.root_dir"], tmp_path / "home", tmp_path)
    assert (root / "images" / "train_00000.jpg").is_file()
    assert (root / "masks" / "train_00000.png").is_file()
