"""check_dataset finds what is wrong, and names the file and the record."""

# ruff: noqa: E501 - one damage a line is what makes the tables readable

import json
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_mcp.datasets.check import check
from mask2former_mcp.datasets.layout import Layout
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.datasets.report import Report
from mask2former_mcp.datasets.survey import survey
from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats import panoptic

Json = dict[str, Any]
Change = Callable[[Path, Callable[[Json], object]], None]


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Report]:
    def call(folder: Path, format: str | None = None, **options: Any) -> Report:
        other = options.pop("compare_with", None)
        return check(
            DatasetRef.parse(str(folder)),
            format,
            home=tmp_path / "home",
            compare_with=DatasetRef.parse(str(other)) if other else None,
            **options,
        )

    return call


def found(report: Report, code: str, severity: str = "error") -> Json:
    matching = [p for p in report.problems if p["code"] == code and p["severity"] == severity]
    assert matching, f"no {severity} {code} in {report.problems}"
    return dict(matching[0])


def test_good_data_is_ready_with_counts_classes_and_derived_values(shop: Path, look: Callable[..., Report]) -> None:
    report = look(shop / "train")
    assert (report.finished, report.ready, report.errors) == (True, True, 0)
    assert report.format == "coco_panoptic"
    assert report.counts == {
        "images": 12, "annotated_images": 12, "annotations": report.counts["annotations"],
        "classes": 9, "things": 6, "files_checked": 12,
    }  # fmt: skip
    assert sum(row["annotations"] for row in report.classes) == report.counts["annotations"]
    assert report.derived["num_classes"] == 9
    assert report.derived["contiguous_id"] is True
    assert json.loads(json.dumps(report.as_dict()))["ready"] is True


def test_a_folder_of_train_and_val_is_checked_by_role_and_compared(shop: Path, look: Callable[..., Report]) -> None:
    assert look(shop).dataset == str(shop / "train")
    report = look(shop, role="eval")
    assert report.dataset == str(shop / "val")
    assert "compared with" in report.notes[0]


def test_instances_are_checked_too(shop: Path, look: Callable[..., Report]) -> None:
    report = look(shop / "train", "coco", compare_with=shop / "val")
    assert report.ready, report.problems
    assert report.counts["classes"] == 6


def test_ade_is_checked_by_its_pixels(ade_shop: Path, look: Callable[..., Report]) -> None:
    report = look(ade_shop / "train", compare_with=ade_shop / "val")
    assert report.ready, report.problems
    assert report.format == "ade"
    assert {row["name"]: row["images"] for row in report.classes}["belt"] == 12


def edited(name: str, how: Callable[[Json], object]) -> Callable[[Path, Change], None]:
    return lambda folder, edit: edit(folder / name, how)


PANOPTIC, COCO = "annotations_panoptic.json", "annotations.json"
FIRST = "images_panoptic/train_00000.png"


def _shrink(folder: Path, _: Change) -> None:
    Image.new("RGB", (10, 10)).save(folder / "images" / "train_00000.jpg")


def _truncate(name: str) -> Callable[[Path, Change], None]:
    return lambda folder, _: (folder / name).write_bytes((folder / name).read_bytes()[:200]) and None


def _remove(name: str) -> Callable[[Path, Change], None]:
    return lambda folder, _: (folder / name).unlink()


def _small_mask(folder: Path, _: Change) -> None:
    path = folder / FIRST
    panoptic.write_ids(path, panoptic.read_ids(path)[:50])


def _erase_segment(folder: Path, _: Change) -> None:
    path = folder / FIRST
    ids = panoptic.read_ids(path)
    largest = json.loads((folder / PANOPTIC).read_text())["annotations"][0]["segments_info"][0]["id"]
    panoptic.write_ids(path, np.where(ids == largest, 0, ids))


@pytest.mark.parametrize(
    ("format", "damage", "code", "severity", "file", "id"),
    [
        ("coco_panoptic", lambda f, e: (f / PANOPTIC).write_text("{"), "not_json", "error", PANOPTIC, None),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c.pop("categories")), "missing_key", "error", PANOPTIC, None),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["annotations"][2].pop("segments_info")), "missing_key", "error", PANOPTIC, 3),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["images"][1].update(id=1)), "duplicate_id", "error", PANOPTIC, 1),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["annotations"][1].update(image_id=1)), "duplicate_id", "error", PANOPTIC, 1),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["categories"][1].update(id=1)), "duplicate_id", "error", PANOPTIC, 1),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["annotations"][4].update(image_id=77)), "unknown_image", "error", PANOPTIC, 77),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["annotations"][3]["segments_info"][0].update(category_id=99)), "unknown_category", "error", PANOPTIC, 4),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["categories"][0].pop("isthing")), "missing_key", "error", PANOPTIC, 1),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["categories"][0].pop("name")), "category_name", "warning", PANOPTIC, 1),
        ("coco", edited(COCO, lambda c: c["categories"][1].update(name="")), "category_name", "warning", COCO, 2),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["annotations"][0]["segments_info"][0].pop("iscrowd")), "iscrowd_missing", "warning", PANOPTIC, 1),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["categories"].append({"id": 300, "name": "far", "isthing": 0})), "class_id", "warning", PANOPTIC, 300),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["categories"].append({"id": 14, "name": "new", "isthing": 0})), "unannotated_class", "warning", PANOPTIC, 14),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["categories"].reverse()), "label_map_order", "error", "label_map_panoptic.json", None),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["categories"].pop()), "label_map_mismatch", "error", "label_map_panoptic.json", None),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["images"][1].update(width=float("nan"))), "bad_value", "error", PANOPTIC, 2),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["images"][1].update(height=float("inf"))), "bad_value", "error", PANOPTIC, 2),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["images"][1].update(id=True)), "bad_value", "error", PANOPTIC, None),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["images"][1].update(file_name="../x.jpg")), "bad_path", "error", PANOPTIC, 2),
        ("coco_panoptic", edited(PANOPTIC, lambda c: c["images"][0].update(width=97)), "size_mismatch", "error", "train_00000.jpg", 1),
        ("coco_panoptic", _shrink, "size_mismatch", "error", "train_00000.jpg", 1),
        ("coco_panoptic", _small_mask, "size_mismatch", "error", "train_00000.png", 1),
        ("coco_panoptic", _erase_segment, "segment_missing", "error", "train_00000.png", 1),
        ("coco_panoptic", _truncate("images/train_00002.jpg"), "unreadable", "error", "train_00002.jpg", 3),
        ("coco_panoptic", _truncate("images_panoptic/train_00002.png"), "unreadable", "error", "train_00002.png", 3),
        ("coco_panoptic", _remove("images/train_00001.jpg"), "missing_file", "error", "train_00001.jpg", 2),
        ("coco_panoptic", _remove("images_panoptic/train_00001.png"), "missing_file", "error", "train_00001.png", 2),
        ("coco_panoptic", _remove("label_map_panoptic.json"), "missing_file", "warning", "train", None),
        ("coco_panoptic", lambda f, e: shutil.rmtree(f / "images"), "missing_file", "error", "train", None),
        ("coco_panoptic", lambda f, e: shutil.rmtree(f / "images_panoptic"), "missing_file", "error", "train", None),
        ("coco", edited(COCO, lambda c: c["annotations"][1].update(id=1)), "duplicate_id", "error", COCO, 1),
        ("coco", edited(COCO, lambda c: c["annotations"][1].pop("segmentation")), "missing_key", "error", COCO, 2),
        ("coco", edited(COCO, lambda c: c["annotations"][0]["segmentation"].update(size=[9216, 1])), "size_mismatch", "error", COCO, 1),
        ("coco", edited(COCO, lambda c: c["annotations"][0].update(segmentation=[[0, 0, 999, 0, 5, 5]])), "outside_image", "warning", COCO, 1),
        ("coco", edited(COCO, lambda c: c["images"][3].pop("height")), "missing_key", "error", COCO, 4),
        ("coco", edited(COCO, lambda c: c["annotations"][0].update(category_id=50)), "unknown_category", "error", COCO, 1),
        ("coco", edited(COCO, lambda c: c["annotations"][0].pop("iscrowd")), "iscrowd_missing", "warning", COCO, 1),
        ("coco", _remove("images/train_00001.jpg"), "missing_file", "error", "train_00001.jpg", 2),
    ],
)  # fmt: skip
def test_a_fault_is_found_and_named(
    shop: Path, look: Callable[..., Report], edit: Change, format: str, damage: Callable[[Path, Change], None],
    code: str, severity: str, file: str, id: int | None,
) -> None:  # fmt: skip
    damage(shop / "train", edit)
    report = look(shop / "train", format)
    problem = found(report, code, severity)
    assert problem["file"].endswith(file)
    assert problem["id"] == id
    assert report.ready is (report.errors == 0)


@pytest.mark.parametrize(
    ("damage", "code", "severity", "file", "id"),
    [
        (_truncate("masks/train_00002.png"), "unreadable", "error", "train_00002.png", "line 3"),
        (_remove("images/train_00002.jpg"), "missing_file", "error", "train_00002.jpg", 3),
        (lambda f, e: Image.new("L", (96, 96), 99).save(f / "masks/train_00001.png"), "unknown_category", "error", "train_00001.png", "line 2"),
        (lambda f, e: Image.new("L", (96, 96), 255).save(f / "masks/train_00001.png"), "no_segments", "warning", "train_00001.png", "line 2"),
        (lambda f, e: Image.new("RGB", (96, 96)).save(f / "masks/train_00001.png"), "bad_value", "error", "train_00001.png", "line 2"),
        (lambda f, e: Image.new("L", (9, 9), 1).save(f / "masks/train_00001.png"), "size_mismatch", "error", "train_00001.png", "line 2"),
        (lambda f, e: (f / "annotations.jsonl").write_text("{}\n{"), "missing_key", "error", "annotations.jsonl", "line 1"),
        (lambda f, e: (f / "label_map.json").write_text('[{"id": 255, "name": "x"}]'), "class_id", "error", "label_map.json", 255),
    ],
)  # fmt: skip
def test_a_fault_of_ade_data_is_found_and_named(
    ade_shop: Path, look: Callable[..., Report], edit: Change, damage: Callable[[Path, Change], None],
    code: str, severity: str, file: str, id: int | str,
) -> None:  # fmt: skip
    damage(ade_shop / "train", edit)
    problem = found(look(ade_shop / "train", "ade"), code, severity)
    assert problem["file"].endswith(file)
    assert problem["id"] == id


def misspell(entry: Json) -> None:
    entry["nmae"] = entry.pop("name")


def test_misspelt_names_of_classes_are_told_once_with_the_keys_that_are_there(
    shop: Path, look: Callable[..., Report], edit: Change
) -> None:
    edit(shop / "train" / PANOPTIC, lambda c: misspell(c["categories"][0]))
    report = look(shop / "train")
    assert report.ready
    assert found(report, "category_name", "warning")["message"] == (
        "category 1 has no name; keys found: id, isthing, nmae; where no label map names it, category 1 is called class_1"
    )
    edit(shop / "train" / PANOPTIC, lambda c: [misspell(entry) for entry in c["categories"][1:]])
    report = look(shop / "train")
    assert report.by_code["category_name"] == 1
    assert (
        "categories [1, 2, 3, 4, 5, 6, 11, 12, ...] (9) have no name"
        in found(report, "category_name", "warning")["message"]
    )


def test_a_name_that_is_no_text_is_shown(shop: Path, look: Callable[..., Report], edit: Change) -> None:
    edit(shop / "train" / PANOPTIC, lambda c: c["categories"][0].update(name=5))
    assert (
        'category 1 has no name; found "name": 5;' in found(look(shop / "train"), "category_name", "warning")["message"]
    )


def test_a_fault_says_which_section_its_record_is_in(shop: Path, look: Callable[..., Report], edit: Change) -> None:
    edit(shop / "train" / PANOPTIC, lambda c: c["categories"][0].pop("isthing"))
    message = found(look(shop / "train"), "missing_key")["message"]
    assert message == 'categories: the required key "isthing" is missing'


def test_a_label_map_that_names_a_class_otherwise_wins_and_says_so(
    shop: Path, look: Callable[..., Report], edit: Change
) -> None:
    edit(shop / "train" / PANOPTIC, lambda c: c["categories"][0].update(name="crate"))
    assert found(look(shop / "train"), "label_map_name", "warning")["message"].endswith(
        "and 'crate' in the annotations: the label map's name is used"
    )


@pytest.mark.parametrize("format", ["coco_panoptic", "coco"])
def test_a_size_that_fits_before_exif_turns_the_image_says_so(
    shop: Path, look: Callable[..., Report], edit: Change, format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 60)).save(shop / "train" / "images" / "train_00000.jpg", exif=exif)
    for name in (PANOPTIC, COCO):
        edit(shop / "train" / name, lambda c: c["images"][0].update(width=96, height=60))
    _small_mask(shop / "train", edit)
    path = shop / "train" / FIRST
    panoptic.write_ids(path, np.zeros((60, 96), np.int32))
    turned = "60 x 96 (after its EXIF rotation; as stored 96 x 60)"
    cure = ": remove the EXIF orientation from the image, or annotate it upright"
    messages = [p["message"] for p in look(shop / "train", format).problems if p["code"] == "size_mismatch"]
    assert f"the image is {turned}, the annotations say 96 x 60{cure}" in messages
    assert (f"the mask is 96 x 60, its image {turned}{cure}" in messages) is (format == "coco_panoptic")


def test_a_grey_mask_whose_segments_are_not_found_is_said_to_be_grey(shop: Path, look: Callable[..., Report]) -> None:
    path = shop / "train" / FIRST
    Image.fromarray(np.zeros(panoptic.read_ids(path).shape, np.uint8)).save(path)
    assert found(look(shop / "train"), "segment_missing")["message"].endswith(
        "no pixel in the mask; the PNG is grey, so its values are taken as ids"
    )


def test_more_than_254_classes_cannot_be_told_apart(shop: Path, look: Callable[..., Report], edit: Change) -> None:
    many = [{"id": i, "name": f"c{i}", "isthing": 0} for i in range(1, 256)]
    edit(shop / "train" / PANOPTIC, lambda c: c.update(categories=many))
    found(look(shop / "train"), "too_many_classes")


def test_an_endless_class_table_is_cut_and_counted(shop: Path, look: Callable[..., Report], edit: Change) -> None:
    many = [{"id": i, "name": f"c{i}", "isthing": 0} for i in range(1, 1001)]
    edit(shop / "train" / PANOPTIC, lambda c: c.update(categories=many))
    report = look(shop / "train")
    assert len(report.classes) == 300
    assert report.counts["classes"] == 1000
    assert "classes: 300 of 1000 are shown" in report.notes


def test_a_missing_label_map_is_offered_ready_made(shop: Path, look: Callable[..., Report]) -> None:
    path = shop / "train" / "label_map_panoptic.json"
    path.unlink()
    report = look(shop / "train")
    assert report.ready
    assert found(report, "missing_file", "warning")["message"].startswith(
        "label_map_panoptic.json is missing: each job"
    )
    path.write_text(json.dumps(report.derived["label_map_content"]))
    assert look(shop / "train").by_code.get("missing_file") is None


def test_ade_without_a_label_map_is_not_ready(ade_shop: Path, look: Callable[..., Report]) -> None:
    (ade_shop / "train" / "label_map.json").unlink()
    report = look(ade_shop / "train")
    assert not report.ready
    assert "only it names the classes" in found(report, "missing_file")["message"]


def test_another_class_order_in_the_other_split_is_an_error(
    shop: Path, look: Callable[..., Report], edit: Change
) -> None:
    edit(shop / "val" / PANOPTIC, lambda c: c["categories"].reverse())
    assert "another order" in found(look(shop / "train", compare_with=shop / "val"), "category_mismatch")["message"]
    edit(shop / "val" / PANOPTIC, lambda c: c["categories"].pop())
    assert "only here" in found(look(shop / "train", compare_with=shop / "val"), "category_mismatch")["message"]


def test_an_image_in_both_splits_is_leakage_under_any_name(shop: Path, look: Callable[..., Report]) -> None:
    shutil.copy(shop / "val" / "images" / "val_00001.jpg", shop / "train" / "images" / "train_00003.jpg")
    problem = found(look(shop / "train", compare_with=shop / "val"), "leakage")
    assert problem["file"].endswith("train_00003.jpg")
    assert problem["id"] == 4
    assert "val_00001.jpg" in problem["message"]


def test_the_same_name_with_other_pixels_is_a_warning(shop: Path, look: Callable[..., Report], edit: Change) -> None:
    (shop / "val" / "images" / "val_00000.jpg").rename(shop / "val" / "images" / "train_00005.jpg")
    edit(shop / "val" / PANOPTIC, lambda c: c["images"][0].update(file_name="train_00005.jpg"))
    report = look(shop / "train", compare_with=shop / "val")
    assert found(report, "same_name", "warning")["id"] == 6
    assert report.ready


def test_at_most_20_problems_are_shown_with_the_total_and_every_kind_first(
    shop: Path, look: Callable[..., Report], edit: Change
) -> None:
    extra = [{"id": 1000 + i, "file_name": f"no_{i}.jpg", "width": 5, "height": 5} for i in range(50)]
    edit(shop / "train" / PANOPTIC, lambda c: c["images"].extend(extra))
    (shop / "train" / "images_panoptic" / "train_00000.png").unlink()
    report = look(shop / "train")
    assert len(report.problems) == 20
    assert report.errors == 51
    assert report.by_code["missing_file"] == 51
    assert report.by_code["unannotated_image"] == 50
    assert report.problems[0]["severity"] == "error"


def test_a_sample_opens_few_files_and_says_so(shop: Path, look: Callable[..., Report]) -> None:
    for image in (shop / "train" / "images").iterdir():
        image.write_bytes(b"")
    report = look(shop / "train", sample=3)
    assert report.counts["files_checked"] == 3
    assert report.by_code["unreadable"] == 3
    assert "sample of 3 of 12" in report.notes[0]


def test_archives_are_opened_once_and_a_bad_one_is_a_problem(
    shop: Path, look: Callable[..., Report], tmp_path: Path
) -> None:
    images = shop / "train" / "images"
    with tarfile.open(shop / "train" / "images.tar.gz", "w:gz") as tar:
        tar.add(images, "root")
    shutil.rmtree(images)
    assert look(shop / "train").ready
    assert len(list((tmp_path / "home" / "cache" / "archives").iterdir())) == 1
    (shop / "train" / "images.tar.gz").write_bytes(b"not an archive")
    assert "images.tar.gz" in found(look(shop / "train"), "archive")["message"]


def test_ade_archives_are_checked_through_one_root(ade_shop: Path, look: Callable[..., Report]) -> None:
    for part in ("images", "masks"):
        with tarfile.open(ade_shop / "train" / f"{part}.tar.gz", "w:gz") as tar:
            tar.add(ade_shop / "train" / part, f"deep/{part}")
        shutil.rmtree(ade_shop / "train" / part)
    report = look(ade_shop / "train")
    assert report.ready, report.problems


def test_an_annotation_file_is_never_held_in_memory_whole(tmp_path: Path) -> None:
    segments = [{"id": i, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": [1, 2, 3, 4]} for i in range(1, 60)]
    path = tmp_path / PANOPTIC
    records = [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in range(3000)]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in range(3000)]
    categories = [{"id": 1, "name": "a", "isthing": 1}]
    path.write_text(json.dumps({"annotations": records, "images": images, "categories": categories}))
    del records
    tracemalloc.start()
    surveyed = survey(Layout("coco_panoptic", path, None, None, None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert surveyed.annotations == 59 * 3000
    assert peak < path.stat().st_size / 2


def test_a_folder_for_inference_needs_images_only(shop: Path, look: Callable[..., Report]) -> None:
    assert look(shop / "test" / "images", role="inference").counts == {"images": 2, "files_checked": 2}
    (shop / "test" / "images" / "broken.png").write_bytes(b"x")
    report = look(shop / "test", role="inference")
    assert found(report, "unreadable")["file"].endswith("broken.png")
    with pytest.raises(DatasetError, match="no images"):
        look(shop, role="inference")


def test_one_image_is_checked_for_inference(shop: Path, look: Callable[..., Report]) -> None:
    picture = shop / "test" / "images" / "test_00000.jpg"
    report = look(picture, role="inference")
    assert (report.ready, report.counts) == (True, {"images": 1, "files_checked": 1})
    _truncate("test_00000.jpg")(picture.parent, lambda *_: None)
    assert found(look(picture, role="inference"), "unreadable")["file"] == str(picture)


def test_images_of_a_kind_that_is_not_read_are_counted(shop: Path, look: Callable[..., Report]) -> None:
    for name in ("a.gif", "b.GIF", "c.heic", "note.txt"):
        (shop / "test" / "images" / name).write_bytes(b"")
    report = look(shop / "test", role="inference")
    assert report.ready
    message = found(report, "unread_kind", "warning")["message"]
    assert message.startswith(
        "3 image file(s) are of a kind that is not read (2 .gif, 1 .heic): convert them to one of"
    )


def test_what_cannot_be_checked_at_all_is_an_error_not_a_report(shop: Path, look: Callable[..., Report]) -> None:
    with pytest.raises(DatasetError, match="no annotation file"):
        look(shop / "test")
    with pytest.raises(DatasetError, match=r"annotations\.jsonl"):
        look(shop / "train", "ade")
    with pytest.raises(DatasetError, match="does not exist"):
        look(shop / "train", compare_with=shop / "nowhere")


def test_a_long_check_goes_on_by_itself_and_the_same_call_finds_the_result(
    shop: Path, look: Callable[..., Report]
) -> None:
    first = look(shop / "train", quick_s=-1, deadline_s=0)
    assert (first.finished, first.ready) == (False, None)
    assert "same arguments" in str(first.next)
    assert look(shop / "train", quick_s=-1, deadline_s=30).ready is True


def test_a_result_is_handed_out_once_so_that_repaired_data_is_looked_at_again(
    shop: Path, look: Callable[..., Report]
) -> None:
    image = shop / "train" / "images" / "train_00000.jpg"
    good = image.read_bytes()
    image.write_bytes(b"")
    assert look(shop / "train", quick_s=-1, deadline_s=30).ready is False
    image.write_bytes(good)
    assert look(shop / "train", quick_s=-1, deadline_s=30).ready is True
