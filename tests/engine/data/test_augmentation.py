"""Views and colours: sizes, crops, flips, and that labels stay under their pixels."""

import numpy as np
import pytest

from mask2former_mcp.engine import augment
from mask2former_mcp.engine.augment import View
from mask2former_mcp.spec.dataset import Augmentation


def settings(**changes: object) -> Augmentation:
    return Augmentation.model_validate(
        {"train_min_size": [64, 96], "train_max_size": 128, "train_crop_size": [48, 40], **changes}
    )


@pytest.mark.parametrize(
    ("size", "edge", "longest", "expected"),
    [((100, 200), 50, 1000, (50, 100)), ((100, 200), 50, 80, (40, 80)), ((200, 100), 150, 1000, (300, 150))],
)
def test_the_shortest_edge_is_met_unless_the_longest_would_be_too_long(
    size: tuple[int, int], edge: int, longest: int, expected: tuple[int, int]
) -> None:
    assert augment.shortest_edge(size, edge, longest) == expected


@pytest.mark.parametrize("seed", range(20))
def test_labels_stay_under_their_pixels(seed: int) -> None:
    # Classes are painted in the image too: whatever the view, colour and label must agree (borders of blocks aside).
    rng = np.random.default_rng(seed)
    planes = np.kron(rng.integers(1, 5, (4, 6)), np.ones((32, 32), dtype=int)).astype(np.uint16)[None]
    image = np.repeat((planes[0] * 60).astype(np.uint8)[..., None], 3, -1)
    view = augment.draw_view(rng, (128, 192), settings(), lambda view: np.ones((2, 2), dtype=np.int64))
    seen, labels = view.image(image), view.labels(planes)[0]
    assert seen.shape == (48, 40, 3)
    assert labels.shape == (12, 10)
    centres = seen[2::4, 2::4, 0].astype(int)
    agree = abs(centres - labels.astype(int) * 60) < 10
    assert agree.mean() > 0.75
    inside = agree[1:-1, 1:-1] | (abs(np.diff(labels.astype(int), axis=0))[:-1, 1:-1] > 0)
    assert inside.mean() > 0.75


def test_a_flip_mirrors_image_and_labels_alike() -> None:
    planes = np.zeros((1, 16, 40), dtype=np.uint16)
    planes[:, :, 20:] = 7
    image = np.repeat((planes[0] * 30).astype(np.uint8)[..., None], 3, -1)
    view = View((16, 40), (16, 40), 0, 0, (16, 38), flip=True)
    assert (view.image(image)[:, :18] == 210).all()
    assert (view.image(image)[:, 18:] == 0).all()
    assert view.labels(planes)[0, 0].tolist() == [7, 7, 7, 7, 0, 0, 0, 0, 0, 0]


def test_a_crop_of_one_class_is_drawn_again() -> None:
    planes = np.ones((1, 128, 128), dtype=np.uint16)
    planes[:, :, 120:] = 2  # only crops at the right edge see a second class, and none sees it on 40 % of its area
    planes[:, 100:] = 3

    def share(seed: int, tries: int, monkeypatch: pytest.MonkeyPatch) -> float:
        monkeypatch.setattr(augment, "CROP_TRIES", tries)
        view = augment.draw_view(
            np.random.default_rng(seed),
            (128, 128),
            settings(train_min_size=[128]),
            lambda view: view.labels(planes).max(0).astype(np.int64),
        )
        counts = np.bincount(view.labels(planes).reshape(-1))
        return float(counts.max() / counts.sum())

    with pytest.MonkeyPatch.context() as patch:
        careless = np.mean([share(seed, 1, patch) for seed in range(60)])
        careful = np.mean([share(seed, 10, patch) for seed in range(60)])
    assert careful < careless - 0.1


def test_half_of_the_views_are_flipped_and_all_sizes_occur() -> None:
    views = [
        augment.draw_view(
            np.random.default_rng(i), (100, 100), settings(), lambda view: np.ones((2, 2), dtype=np.int64)
        )
        for i in range(200)
    ]
    assert 70 < sum(view.flip for view in views) < 130
    assert {view.scaled for view in views} == {(64, 64), (96, 96)}


def test_colours_change_half_of_the_time_and_repeat_with_the_seed() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    first = [augment.jitter(np.random.default_rng(i), image) for i in range(50)]
    again = [augment.jitter(np.random.default_rng(i), image) for i in range(50)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    changed = sum((a != image).any() for a in first)
    assert 35 < changed <= 50
    assert all(a.dtype == np.uint8 and a.shape == image.shape for a in first)


def test_a_small_image_is_padded_and_a_large_one_is_not() -> None:
    assert augment.padded(np.ones((2, 3, 3), dtype=np.uint8), (4, 4)).sum() == 18
    whole = np.ones((4, 4, 3), dtype=np.uint8)
    assert augment.padded(whole, (4, 4)) is whole
