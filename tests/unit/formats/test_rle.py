import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference

from mask2former_mcp.formats import rle

masks = st.tuples(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1)).map(
    lambda t: np.random.default_rng(t[3]).random((t[0], t[1])) < t[2]
)


@given(masks)
def test_a_mask_survives_encoding_and_the_string_is_cocos(mask: np.ndarray) -> None:
    encoded = rle.encode(mask)
    assert encoded["counts"] == reference.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert (rle.decode(encoded) == mask).all()
    assert rle.area(encoded) == mask.sum()


@given(st.lists(st.integers(0, 2**30), min_size=1, max_size=30))
def test_any_run_lengths_survive_packing(counts: list[int]) -> None:
    assert rle.unpack(rle.pack(np.array(counts))).tolist() == counts


def test_plain_run_lengths_are_read_too() -> None:
    assert rle.decode({"size": [2, 2], "counts": [1, 2, 1]}).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "broken",
    [
        {"size": [2, 2], "counts": [1, 2]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2], "counts": [4]},
        {"size": [2, 2], "counts": "é"},
        {"size": [2, 2], "counts": "o"},
        {"size": [2, 2], "counts": [1.5, 2.5]},
    ],
)
def test_broken_run_lengths_are_refused(broken: dict) -> None:
    with pytest.raises(ValueError, match=r"run|size"):
        rle.decode(broken)


@settings(max_examples=60)
@given(st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_polygons_cover_what_cocos_rasteriser_covers_up_to_the_rim(corners: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    turn = np.sort(rng.random(corners)) * 2 * np.pi
    radius = rng.uniform(25, 50, corners)
    points = np.stack([60 + radius * np.cos(turn), 60 + radius * np.sin(turn)], 1).ravel()
    theirs = reference.decode(reference.merge(reference.frPyObjects([points.tolist()], 120, 130))).astype(bool)
    mine = rle.fill([points], 120, 130)
    either = theirs | mine  # of a sliver one of the two may see nothing
    rim = np.count_nonzero(either[:, 1:] != either[:, :-1]) + np.count_nonzero(either[1:] != either[:-1])
    assert np.count_nonzero(mine != theirs) <= 0.5 * rim + 2


def test_a_rectangle_covers_exactly_the_pixels_whose_centres_lie_in_it() -> None:
    mask = rle.fill([[1, 1, 4, 1, 4, 3, 1, 3]], 5, 6)
    assert mask.sum() == 6
    assert mask[1:3, 1:4].all()


def test_several_polygons_are_united_and_cut_at_the_border() -> None:
    mask = rle.fill([[-5, -5, 2, -5, 2, 2, -5, 2], [3, 3, 9, 3, 9, 9, 3, 9]], 5, 5)
    assert mask.sum() == 4 + 4


def test_a_polygon_of_two_points_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 points"):
        rle.fill([[0, 0, 1, 1]], 4, 4)


def test_the_box_of_a_mask_is_tight() -> None:
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:8] = True
    assert rle.bounding_box(mask) == (3, 2, 5, 3)
    assert rle.bounding_box(np.zeros((3, 3), bool)) == (0, 0, 0, 0)
