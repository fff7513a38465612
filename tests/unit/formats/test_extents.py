"""Areas and boxes of a label map's values, against each value looked for on its own."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mask2former_mcp.formats import panoptic
from mask2former_mcp.formats.extents import Extent, extents
from mask2former_mcp.formats.panoptic import Segment


def slowly(labels: NDArray[np.integer]) -> dict[int, Extent]:
    found = {}
    for value in sorted(set(labels.reshape(-1).tolist())):
        rows, columns = np.nonzero(labels == value)
        left, top = int(columns.min()), int(rows.min())
        found[value] = Extent(rows.size, left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
    return found


def regions(values: list[int], dtype: str) -> NDArray[np.integer]:
    """Areas of a few values, several of them in parts, and some single pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.choice(values, (6, 8)).repeat(9, 0).repeat(7, 1)
    coarse[rng.integers(0, 54, 20), rng.integers(0, 56, 20)] = rng.choice(values, 20)
    return coarse.astype(dtype)


@pytest.mark.parametrize(
    "labels",
    [
        regions([0, 1, 2, 7, 255], "u1"),
        regions([0, 3, 300, 32_000], "i2"),
        regions([0, 9, 256, 70_000, (1 << 24) - 1], "i4"),
        regions([0, 1, 2], "u1").T,
        regions([0, 1, 2], "u1")[::2, ::3],
        np.random.default_rng(0).integers(0, 500, (40, 30)),
        np.full((3, 5), 4, dtype=np.uint8),
        np.array([[6]], dtype=np.uint8),
        np.arange(5, dtype=np.uint8)[None],
        np.arange(5, dtype=np.uint8)[:, None],
    ],
    ids=[
        "8 bit",
        "16 bit",
        "24 bit",
        "turned",
        "every other",
        "noise",
        "one value",
        "one pixel",
        "one row",
        "a column",
    ],
)
def test_every_value_has_its_area_and_its_box(labels: NDArray[np.integer]) -> None:
    found = extents(labels)
    assert list(found.items()) == list(slowly(labels).items())
    assert all((labels[e.place] == value).sum() == e.area for value, e in found.items())


def test_a_map_without_pixels_has_no_values() -> None:
    assert extents(np.zeros((0, 4), dtype=np.uint8)) == {}
    assert extents(np.zeros((4, 0), dtype=np.uint8)) == {}


def test_segments_are_told_in_their_order_and_empty_ones_drop_out() -> None:
    ids = np.zeros((5, 6), dtype=np.int32)
    ids[1:3, 2:6], ids[4, 0] = 300, 2
    info = panoptic.segments_info(extents(ids), [Segment(300, 5), Segment(9, 5), Segment(2, 7, True)])
    assert info == [
        {"id": 300, "category_id": 5, "iscrowd": 0, "area": 8, "bbox": [2, 1, 4, 2]},
        {"id": 2, "category_id": 7, "iscrowd": 1, "area": 1, "bbox": [0, 4, 1, 1]},
    ]
