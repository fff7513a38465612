"""Overlays drawn region by region in bounding boxes, against the same drawn slowly over the whole image."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from mask2former_mcp.engine import artifacts, name_plates
from mask2former_mcp.engine.artifacts import Region, cut
from mask2former_mcp.engine.classes import Classes, Entry
from mask2former_mcp.engine.postprocess import Panoptic, Segment
from mask2former_mcp.engine.scoring import Outcome

CLASSES = Classes((Entry(1, "disc", True, (220, 60, 40)), Entry(2, "box", True, (30, 90, 210))))


def scene(size: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """An image with three masks: a disc in the middle, a box over its edge, and one in the corner of the image."""
    height, width = size
    rows, columns = np.indices(size)
    disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(size) / 4) ** 2
    box = (abs(rows - height / 2) < height / 8) & (abs(columns - width * 0.7) < width / 6)
    corner = (rows > height * 0.8) & (columns > width * 0.85)
    image = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3)).astype(np.uint8)
    return cv2.resize(image, (width, height)), [disc, box, corner]


def slowly(image: np.ndarray, masks: list[np.ndarray], colors: list[tuple[int, int, int]], size: tuple[int, int]):
    """Each mask resized as a whole and blended with all pixels; contours along every one of its pixels."""
    canvas = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if size < image.shape[:2] else cv2.INTER_CUBIC)
    canvas = canvas.astype(np.float32)
    plain = canvas.copy()
    large = [cv2.resize(m.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) >= 0.5 for m in masks]
    for mask, color in zip(large, colors, strict=True):
        canvas[mask] = plain[mask] * 0.5 + np.array(color) * 0.5
    picture, broad = canvas.round().clip(0, 255).astype(np.uint8), {400: 2, 480: 1, 1200: 2}[min(size)]
    for mask, color in zip(large, colors, strict=True):
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, artifacts._contrast(color), broad, cv2.LINE_AA)
    return picture


@pytest.mark.parametrize("size", [(480, 640), (120, 200), (1500, 2000)], ids=["as it is", "enlarged", "reduced"])
def test_regions_in_their_boxes_look_as_drawn_over_the_whole_image(size: tuple[int, int]) -> None:
    image, masks = scene(size)
    classes = [1, 2, 2]
    regions = [Region(cut(mask), class_) for mask, class_ in zip(masks, classes, strict=True)]
    found = artifacts.overlay(image, regions, CLASSES)
    wanted = slowly(image, masks, [CLASSES[c].color for c in classes], found.shape[:2])
    apart = np.abs(found.astype(int) - wanted).max(-1)
    assert np.median(apart) <= 1
    assert (apart > 3).mean() < 0.02  # along the contours, which are smoother
    assert apart.mean() < 1


def test_more_regions_than_a_byte_has_numbers_look_as_if_it_had_them(monkeypatch: pytest.MonkeyPatch) -> None:
    image, masks = scene((480, 640))
    regions = [Region(cut(mask), class_) for mask, class_ in zip(masks, (1, 2, 2), strict=True)]
    wanted = artifacts.overlay(image, regions, CLASSES)
    monkeypatch.setattr(artifacts, "NUMBERS", 1)
    np.testing.assert_array_equal(artifacts.overlay(image, regions, CLASSES), wanted)


def test_masks_of_the_original_size_are_drawn_over_an_image_of_the_networks() -> None:
    image, masks = scene((480, 640))
    large = scene((963, 1281))[1]
    found, wanted = (
        artifacts.overlay(image, [Region(cut(mask), 1) for mask in drawn], CLASSES) for drawn in (large, masks)
    )
    assert (np.abs(found.astype(int) - wanted).max(-1) > 20).mean() < 0.02


def test_a_name_stands_deepest_inside_its_region_and_small_regions_have_none() -> None:
    image, masks = np.full((480, 640, 3), 200, dtype=np.uint8), scene((480, 640))[1]
    dot = np.zeros((480, 640), dtype=bool)
    dot[20:30, 20:30] = True
    plain, named = (
        artifacts.overlay(image, [Region(cut(masks[0]), 1, n), Region(cut(dot), 2, n)], CLASSES) for n in (None, "disc")
    )
    rows, columns = np.nonzero((plain != named).any(-1))
    assert (rows.mean(), columns.mean()) == pytest.approx((240, 320), abs=4)
    assert np.ptp(rows) < 40
    assert np.ptp(columns) < 90


def test_a_region_without_any_pixel_is_not_drawn() -> None:
    image = np.full((480, 640, 3), 90, dtype=np.uint8)
    nothing = Region(cut(np.zeros((480, 640), dtype=bool)), 1, "disc")
    assert (artifacts.overlay(image, [nothing], CLASSES) == image).all()


def test_one_map_of_segments_is_cut_into_regions_as_its_masks_are() -> None:
    ids = np.zeros((40, 60), dtype=np.int32)
    ids[3:20, 5:30], ids[10:15, 10:20], ids[39, 59] = 300, 2, 7
    segments = tuple(Segment(value, 1 + value % 2, 0.9) for value in (300, 2, 9, 7))  # nothing is left of 9
    outcome = Outcome(panoptic=Panoptic(ids, segments))
    found = artifacts.outcome_regions(outcome, CLASSES, mode="panoptic", threshold=0.5)
    assert len(found) == 4
    for region, value in zip(found, (300, 2, 9, 7), strict=True):
        wanted = cut(ids == value)
        assert (region.patch.top, region.patch.left, region.patch.size) == (wanted.top, wanted.left, wanted.size)
        np.testing.assert_array_equal(region.patch.mask, wanted.mask)


def test_a_plate_looks_as_drawn_by_pillow_on_any_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8)
    plate, found = name_plates.plate("disc 0.97", 21), picture.copy()
    plate.put(found, 45, 100)
    (height, width), left, top = plate.keeps.shape[:2], 100 + plate.left, 45 + plate.top
    sheet = Image.fromarray(picture)
    draw, letters = ImageDraw.Draw(sheet, "RGBA"), name_plates.font(21)
    draw.rounded_rectangle((left, top, left + width - 1, top + height - 1), 4, fill=(*name_plates.INK, 190))
    start, above = left + 4, top + 3 - letters.getbbox("\u00c1gj|")[1]
    draw.text((start, above), "disc", "white", letters)
    rest = np.ceil(letters.getlength("disc")) + round(letters.getlength(" "))
    draw.text((start + rest, above), "0.97", "white", letters)
    assert (found != picture).any(-1).sum() > 2000
    apart = np.abs(found.astype(int) - np.asarray(sheet)).max(-1)
    assert (apart > 2).sum() < 40  # at the corners, which Pillow draws with steps
    assert abs(top + height / 2 - 45) <= 1
    assert abs(left + width / 2 - 100) <= 1


@pytest.mark.parametrize("size", [(400, 640), (12, 90), (60, 30), (4, 4)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_plate_never_leaves_the_picture_and_is_cut_where_it_is_larger(
    size: tuple[int, int], corner: tuple[int, int]
) -> None:
    picture = np.full((*size, 3), 200, dtype=np.uint8)
    plate = name_plates.plate("a long name", 16)
    plate.put(picture, *((n - 1) * c for n, c in zip(size, corner, strict=True)))
    changed = (picture != 200).any(-1)
    height, width = min(plate.keeps.shape[0], size[0]), min(plate.keeps.shape[1], size[1])
    assert changed.any(1).sum() == height
    assert changed.any(0).sum() == width


@pytest.mark.parametrize("size", [(40, 60), (700, 900)], ids=["every pixel", "some of them"])
def test_the_deepest_pixel_is_found_in_bent_and_hollow_masks(size: tuple[int, int]) -> None:
    rows, columns = np.indices(size) / np.array(size)[:, None, None]
    away = np.hypot(rows - 0.5, columns - 0.5)
    ring = (away > 0.2) & (away < 0.45) & (columns < 0.9)
    row, column = name_plates.deepest(ring)
    depth = cv2.distanceTransform(np.pad(ring.view(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    assert ring[row, column]
    assert depth[row, column] > 0.85 * depth.max()


def test_the_deepest_pixel_of_lines_that_are_seldom_looked_at_lies_on_one() -> None:
    lines = np.zeros((640, 640), dtype=bool)
    lines[:, 3::64] = lines[3::64] = True
    assert lines[name_plates.deepest(lines)]


def test_no_letter_is_cut_that_goes_beyond_its_box() -> None:
    for word in ("jet", "\u1ebe", "g|"):
        whole = np.asarray(name_plates.font(24).getmask(word)).astype(int).sum()
        assert name_plates._word(word, 24).astype(int).sum() == pytest.approx(whole, rel=1e-3)


def test_a_name_that_is_written_from_right_to_left_stays_in_one_piece() -> None:
    name, swash = "\u05d0\u05d1 \u05d2\u05d3\u05d4", name_plates.SWASH
    word = name_plates._word(name, 24)[swash:-swash, swash:-swash]
    found = name_plates.plate(name, 24).adds[name_plates.ABOVE : -name_plates.ABOVE, 4:-4]
    np.testing.assert_array_equal(found, name_plates._ADDS[word, 0])


def test_a_name_that_the_font_cannot_write_becomes_its_category() -> None:
    assert name_plates.legible("Würfel, кубик, κύβος 0.97")
    assert not name_plates.legible("two\nlines")
    classes = Classes((Entry(7, "立方体", True, (220, 60, 40)), Entry(8, "Würfel", True, (30, 90, 210))))
    found = artifacts.class_regions(np.array([[1, 1], [2, 2]]), classes)
    assert [region.name for region in found] == ["class 7", "Würfel"]


def test_a_picture_that_no_jpeg_holds_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="66000 x 3 pixels make no JPEG"):
        artifacts.save(tmp_path / "wide.jpg", np.zeros((3, 66000, 3), dtype=np.uint8))


def test_each_large_part_of_a_thing_has_the_name_and_of_stuff_only_one() -> None:
    classes = Classes((*CLASSES.entries, Entry(3, "floor", False, (90, 90, 90))))
    image, mask = np.full((480, 640, 3), 200, dtype=np.uint8), np.zeros((480, 640), dtype=bool)
    mask[100:200, 80:180] = mask[300:420, 420:540] = mask[300:303, 20:23] = True
    places = []
    for class_, name in ((1, "disc"), (3, "floor")):
        plain, named = (artifacts.overlay(image, [Region(cut(mask), class_, n)], classes) for n in (None, name))
        count, _, boxes, _ = cv2.connectedComponentsWithStats((plain != named).any(-1).view(np.uint8))
        places.append([(int(x + w / 2), int(y + h / 2)) for x, y, w, h, _ in boxes[1:count] if w > 20])
    assert sorted(places[0]) == [
        (pytest.approx(130, abs=6), pytest.approx(150, abs=6)),
        (pytest.approx(480, abs=6), pytest.approx(360, abs=6)),
    ]
    assert len(places[1]) == 1
