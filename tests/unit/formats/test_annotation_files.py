import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mask2former_mcp.formats import ade, coco, label_map, panoptic, rle
from mask2former_mcp.formats.extents import extents
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.formats.panoptic import Segment
from mask2former_mcp.formats.records import Category, ImageEntry

IDS = np.array([[0, 7, 7], [70_000, 70_000, 7]])
CATEGORIES = (Category(3, "cup", True), Category(9, "table", False))


@pytest.fixture
def panoptic_file(tmp_path: Path) -> Path:
    info = panoptic.segments_info(extents(IDS), (Segment(7, 3), Segment(70_000, 9, True), Segment(5, 3)))
    panoptic.write_ids(tmp_path / "a.png", IDS)
    path = tmp_path / "annotations_panoptic.json"
    annotations = [{"image_id": 1, "file_name": "a.png", "segments_info": info}]
    panoptic.write(path, CATEGORIES, [ImageEntry(1, "a.jpg", 3, 2)], annotations)
    return path


@pytest.fixture
def coco_file(tmp_path: Path) -> Path:
    path = tmp_path / "annotations.json"
    objects = [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": rle.encode(IDS == 7), "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 9, "segmentation": [[0, 0, 3, 0, 3, 1, 0, 1]]},
    ]
    coco.write(path, CATEGORIES, [ImageEntry(1, "a.jpg", 3, 2), ImageEntry(2, "b.jpg", 5, 5)], objects)
    return path


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@given(st.lists(st.integers(0, panoptic.LARGEST_ID), min_size=1, max_size=40))
def test_segment_ids_survive_the_png_colours(values: list[int]) -> None:
    ids = np.array([values])
    assert (panoptic.decode_ids(panoptic.encode_ids(ids)) == ids).all()


def test_a_panoptic_set_reads_back_what_was_written(panoptic_file: Path) -> None:
    found = panoptic.read(panoptic_file, panoptic_file.parent, panoptic_file.parent)
    assert found.categories == CATEGORIES
    (record,) = found.records
    assert record.size == (3, 2)
    assert record.segments == (Segment(7, 3), Segment(70_000, 9, True))
    assert (found.masks(record) == IDS).all()


def test_areas_and_boxes_are_measured(panoptic_file: Path) -> None:
    first = json.loads(panoptic_file.read_text())["annotations"][0]["segments_info"][0]
    assert (first["area"], first["bbox"]) == (3, [1, 0, 2, 2])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda c: c["annotations"][0].pop("segments_info"), "missing_key"),
        (lambda c: c["categories"][0].pop("isthing"), "missing_key"),
        (lambda c: c["annotations"][0].update(image_id=4), "unknown_image"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=4), "unknown_category"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=0), "bad_value"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=70_000), "duplicate_id"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "duplicate_id"),
        (lambda c: c["images"].append(c["images"][0]), "duplicate_id"),
        (lambda c: c["images"][0].update(file_name="../a.jpg"), "bad_path"),
        (lambda c: c["images"][0].update(id=True), "bad_value"),
        (lambda c: c.update(images=[]), "missing_key"),
        (lambda c: c["images"].__setitem__(0, 5), "bad_value"),
    ],
)
def test_a_broken_panoptic_file_names_file_and_record(
    panoptic_file: Path, change: Callable[[dict[str, Any]], object], code: str
) -> None:
    with pytest.raises(FormatError, match="annotations_panoptic") as caught:
        panoptic.read(changed(panoptic_file, change), Path(), Path())
    assert caught.value.code == code


def test_a_palette_mask_is_refused_and_a_grey_one_is_ids(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 5, np.uint8)).save(tmp_path / "grey.png")
    assert (panoptic.read_ids(tmp_path / "grey.png") == 5).all()
    Image.fromarray(np.full((2, 2), 5, np.uint8)).convert("P").save(tmp_path / "palette.png")
    with pytest.raises(FormatError, match="RGB PNG"):
        panoptic.read_ids(tmp_path / "palette.png")


def test_a_coco_set_reads_run_lengths_polygons_and_images_without_objects(coco_file: Path) -> None:
    found = coco.read(coco_file, coco_file.parent)
    first, second = found.records
    masks = found.masks(first)
    assert (masks[0] == (IDS == 7)).all()
    assert masks[1].tolist() == [[True] * 3, [False] * 3]
    assert first.instances[1].iscrowd_missing
    assert found.masks(second).shape == (0, 5, 5)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda c: c["annotations"][0].pop("segmentation"), "missing_key"),
        (lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3]]), "bad_value"),
        (lambda c: c["annotations"][1].update(segmentation=[["x"] * 6]), "bad_value"),
        (lambda c: c["annotations"][1].update(segmentation="no"), "bad_value"),
        (lambda c: c["annotations"][0].update(segmentation={"size": [2, 3], "counts": [1]}), "bad_value"),
        (lambda c: c["annotations"][0].update(image_id=7), "unknown_image"),
        (lambda c: c["annotations"][0].update(category_id=7), "unknown_category"),
        (lambda c: c["annotations"][0].update(id=2), "duplicate_id"),
        (lambda c: c["images"][0].pop("width"), "missing_key"),
        (lambda c: c["images"][0].update(height=0), "bad_value"),
    ],
)
def test_a_broken_coco_file_names_file_and_record(
    coco_file: Path, change: Callable[[dict[str, Any]], object], code: str
) -> None:
    with pytest.raises(FormatError, match=r"annotations\.json") as caught:
        coco.read(changed(coco_file, change), Path())
    assert caught.value.code == code


def test_run_lengths_of_another_size_are_refused_when_drawn(coco_file: Path) -> None:
    instance = coco.read(coco_file, Path()).records[0].instances[0]
    with pytest.raises(ValueError, match="annotation 1"):
        instance.mask(9, 9)


def test_ade_pairs_are_read_and_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    path.write_text('{"img": "images/a.jpg", "segm": "masks/a.png"}\n\n{"img": "b.jpg", "segm": "b.png"}\n')
    assert [r.mask for r in ade.read(path, tmp_path)] == [tmp_path / "masks/a.png", tmp_path / "b.png"]
    for line, code in (("{", "not_json"), ('{"img": "a"}', "missing_key"), ('{"img": "/a", "segm": "b"}', "bad_path")):
        path.write_text('{"img": "a", "segm": "b"}\n' + line)
        with pytest.raises(FormatError) as caught:
            ade.read(path, tmp_path)
        assert (caught.value.code, caught.value.id) == (code, None if code == "x" else "line 2")
    path.write_text("\n")
    with pytest.raises(FormatError, match="no line"):
        ade.read(path, tmp_path)


def test_class_masks_have_one_channel(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 3], [255, 3]], np.uint8)).save(tmp_path / "m.png")
    assert ade.read_classes(tmp_path / "m.png").tolist() == [[0, 3], [255, 3]]
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(FormatError, match="one channel"):
        ade.read_classes(tmp_path / "rgb.png")


def test_a_label_map_reads_back_and_forgives_a_missing_colour(tmp_path: Path) -> None:
    path = tmp_path / "label_map.json"
    labels = (label_map.Label(3, "cup", True, (1, 2, 3)), label_map.Label(9, "table", False, (4, 5, 6)))
    label_map.write(path, labels)
    assert label_map.read(path) == labels
    path.write_text('[{"id": 1, "name": "x"}]')
    assert label_map.read(path)[0].color == (128, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [1],
        [{"id": 1}],
        [{"id": 1, "name": ""}],
        [{"id": 1, "name": "a"}] * 2,
        [{"id": 1, "name": "a", "color": [300, 0, 0]}],
    ],
)
def test_a_broken_label_map_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "label_map.json"
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match="label_map"):
        label_map.read(path)
