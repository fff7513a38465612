"""From annotation files to targets: formats, void, crowds, overlaps, padding; the same samples whoever loads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former_mcp.engine import data, loader, targets
from mask2former_mcp.engine.data import Truth
from mask2former_mcp.formats import panoptic, rle
from mask2former_mcp.spec.experiment import Experiment, load

Spec = Callable[..., dict[str, Any]]


def opened(spec: Experiment, split: str = "train") -> data.Annotated:
    return data.open_split(getattr(spec.dataset, split), spec.dataset, num_classes=spec.model.sem_seg_head.num_classes)


def samples(spec: Experiment, *, seed: int | None = 0, cache: bool = False) -> loader.Samples:
    annotated = opened(spec)
    rule = targets.rule_for(spec.model.mode, annotated.classes)
    return loader.Samples(annotated, rule, spec.dataset.augmentation, seed=seed, cache=cache)


def order(count: int, **changes: Any) -> loader.Order:
    return loader.Order(**{"images": count, "batch": 2, "steps": 4, "epochs": 2, "seed": 1, **changes})


def test_panoptic_pixels_keep_their_segment_and_class(tiny: Spec, shapes: Path) -> None:
    source = opened(load("train", tiny())).source
    truth = source.load(0).truth
    ids = panoptic.read_ids(shapes / "train" / "panoptic" / "000.png")
    assert truth.exhaustive
    assert ((truth.planes[0] == 0) == (ids == 0)).all()
    content = json.loads((shapes / "train" / "panoptic.json").read_text())
    segments = content["annotations"][0]["segments_info"]
    position = {c["id"]: i + 1 for i, c in enumerate(content["categories"])}
    for k, segment in enumerate(segments, 1):
        assert ((truth.planes[0] == k) == (ids == segment["id"])).all()
        assert truth.labels[k - 1] == position[segment["category_id"]]


def test_the_three_formats_of_one_image_agree_on_its_classes(tiny: Spec) -> None:
    whole = opened(load("train", tiny())).source.load(3).truth.class_map()
    pairs = opened(load("train", tiny("ade"))).source.load(3).truth.class_map()
    things = opened(load("train", tiny("coco"))).source.load(3).truth.class_map()
    assert (whole == pairs).all()
    assert (things == np.where(whole == 3, 0, whole)).all()


def test_raw_ids_are_the_classes_without_contiguous_id(tiny: Spec) -> None:
    spec = load("train", tiny(dataset__contiguous_id=False, model__sem_seg_head__num_classes=9))
    annotated = opened(spec)
    assert annotated.classes.of_category == {3: 3, 5: 5, 9: 9}
    assert set(annotated.source.load(0).truth.labels) <= {3, 5, 9}


@pytest.mark.parametrize(("contiguous", "needed"), [(True, 3), (False, 9)])
def test_too_few_classes_is_an_error_with_the_right_number(tiny: Spec, contiguous: bool, needed: int) -> None:
    spec = load("train", tiny(dataset__contiguous_id=contiguous, model__sem_seg_head__num_classes=2))
    with pytest.raises(ValueError, match=f"num_classes={needed}"):
        opened(spec)


def test_a_category_that_training_did_not_have_is_an_error(tiny: Spec) -> None:
    spec = load("train", tiny())
    classes = opened(load("train", tiny("coco"))).classes  # things only
    with pytest.raises(ValueError, match="ground"):
        data.open_split(spec.dataset.val, spec.dataset, num_classes=3, classes=classes)


def test_overlapping_instances_stay_whole() -> None:
    masks = [np.zeros((8, 8), dtype=bool) for _ in range(3)]
    masks[0][:5], masks[1][3:], masks[2][:, :2] = True, True, True
    planes = data.pack(masks, 8, 8)
    truth = Truth(planes, np.array([1, 1, 2]), np.zeros(3, dtype=bool), False)
    for k, mask in enumerate(masks, 1):
        assert (truth.mask(k) == mask).all()
    assert (truth.class_map()[:, :2] == 2).all()  # the last one drawn wins in the class map


def rule(mode: str) -> targets.TargetRule:
    return targets.TargetRule(mode, frozenset({1, 2}))


def crowded() -> Truth:
    """Row of: void, thing 1, thing 1, crowd of class 2, stuff 3."""
    return Truth(
        np.array([[[0, 1, 2, 3, 4]]], dtype=np.uint16), np.array([1, 1, 2, 3]), np.array([0, 0, 1, 0], bool), True
    )


def test_void_and_crowds_are_neither_targets_nor_background() -> None:
    truth = crowded()
    labels, masks, valid = rule("panoptic")(truth, truth.planes)
    assert labels.tolist() == [1, 1, 3]
    assert valid.tolist() == [[False, True, True, False, True]]
    assert masks.shape == (3, 1, 5)
    assert masks.sum() == 3


def test_semantic_targets_are_one_mask_a_class_and_instance_targets_things_only() -> None:
    truth = crowded()
    labels, masks, _ = rule("semantic")(truth, truth.planes)
    assert labels.tolist() == [1, 3]
    assert masks[0].tolist() == [[False, True, True, False, False]]
    labels, _, valid = rule("instance")(truth, truth.planes)
    assert labels.tolist() == [1, 1]
    assert valid[0, 4]  # stuff is background there


def test_unannotated_pixels_of_instance_data_are_background() -> None:
    truth = Truth(np.array([[[0, 1]]], dtype=np.uint16), np.array([1]), np.array([False]), exhaustive=False)
    assert rule("instance")(truth, truth.planes)[2].all()


def test_padding_takes_no_part(tiny: Spec) -> None:
    spec = load("train", tiny(dataset__augmentation__train_crop_size=[80, 96]))
    batch = next(iter(loader.training_loader(samples(spec), order(8), workers=0, pin=False)))
    assert batch.images.shape == (2, 3, 80, 96)
    assert batch.valid.shape == (2, 20, 24)
    assert not batch.valid[:, 16:].any()
    assert not batch.valid[:, :, 16:].any()
    assert not batch.masks[:, 16:].any()
    normalize = loader.Normalize(spec.dataset.pixel_mean, spec.dataset.pixel_std)
    pixels = normalize(batch.images, batch.sizes, torch.device("cpu"))
    assert (pixels[:, :, 64:] == 0).all()
    assert (pixels[:, :, :, 64:] == 0).all()
    assert pixels[:, :, :64, :64].std() > 0.2


def equal(a: loader.Batch, b: loader.Batch) -> bool:
    parts = ("images", "labels", "masks", "valid")
    return a.names == b.names and all(torch.equal(getattr(a, p), getattr(b, p)) for p in parts)


def test_the_same_seed_gives_the_same_batches_for_any_number_of_workers_and_with_a_cache(tiny: Spec) -> None:
    spec = load("train", tiny())
    plain, worked, cached = (
        list(loader.training_loader(samples(spec, cache=cache), order(8), workers=workers, pin=False))
        for workers, cache in ((0, False), (2, False), (0, True))
    )
    assert len(plain) == 8
    assert all(equal(a, b) for a, b in zip(plain, worked, strict=True))
    assert all(equal(a, b) for a, b in zip(plain, cached, strict=True))


def test_the_order_can_be_entered_anywhere() -> None:
    whole = list(order(11, epochs=3))
    assert list(order(11, epochs=3, start_step=6)) == whole[6:]
    assert len(order(11, epochs=3, start_step=6)) == 6


def test_an_epoch_shows_each_image_at_most_once_and_differs_from_the_next() -> None:
    whole = list(order(8))
    first = [i for batch in whole[:4] for _, i in batch]
    second = [i for batch in whole[4:] for _, i in batch]
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_an_epoch_longer_than_the_split_shows_an_image_in_another_view_each_time(tiny: Spec) -> None:
    keys = [key for batch in order(8, steps=12) for key in batch]
    assert len(set(keys)) == len(keys) == 48
    batches = loader.training_loader(samples(load("train", tiny())), order(8, steps=12, epochs=1), workers=0, pin=False)
    views: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for name, image in zip(batch.names, batch.images, strict=True):
            views.setdefault(name, []).append(image)
    assert all(len(seen) == 3 for seen in views.values())
    assert not any(torch.equal(seen[0], seen[1]) for seen in views.values())


def test_ranks_share_an_epoch_without_overlap() -> None:
    shares = [list(order(8, batch=2, steps=2, epochs=1, rank=rank, ranks=2)) for rank in (0, 1)]
    assert sorted(i for share in shares for batch in share for _, i in batch) == list(range(8))


def test_a_split_smaller_than_a_batch_says_what_fits() -> None:
    with pytest.raises(ValueError, match="batch_size=8"):
        loader.steps_per_epoch(8, 16, 1, None)


def test_a_mask_of_another_size_is_named(tiny: Spec, tmp_path: Path) -> None:
    spec = load("train", tiny(dataset__train__panoptic_dir=str(tmp_path)))
    Image.new("RGB", (10, 10)).save(tmp_path / "000.png")
    with pytest.raises(ValueError, match=r"000\.png.*10 x 10.*64 x 64"):
        opened(spec).source.load(0)


def test_an_empty_path_says_which_key(tiny: Spec) -> None:
    spec = load("train", tiny(dataset__train__panoptic_json=""))
    with pytest.raises(ValueError, match="panoptic_json is empty"):
        opened(spec)


def test_run_lengths_of_the_instance_file_fill_the_same_pixels(tiny: Spec, shapes: Path) -> None:
    source = opened(load("train", tiny("coco"))).source
    rows = json.loads((shapes / "train" / "instances.json").read_text())["annotations"]
    truth = source.load(0).truth
    mine = [row for row in rows if row["image_id"] == 1]
    assert len(mine) == len(truth.labels)
    for k, row in enumerate(mine, 1):
        assert (truth.mask(k) == rle.decode(row["segmentation"])).all()


def test_coco_objects_written_in_four_ways_overlap_whole_and_a_crowd_says_nothing(
    tiny: Spec, shapes: Path, tmp_path: Path
) -> None:
    covered = np.zeros((4, 64, 64), dtype=bool)
    covered[0, 4:24, 4:24], covered[1, 16:40, 16:40], covered[2, 44:60, 4:20] = True, True, True
    covered[3, 30:, 30:] = True  # a crowd, half over the second object
    packed = coco_mask.encode(np.asfortranarray(covered[1].astype(np.uint8)))
    written: list[Any] = [
        [[4, 4, 24, 4, 24, 24, 4, 24]],
        {"size": [64, 64], "counts": packed["counts"].decode()},
        {"size": [64, 64], "counts": [4 * 64 + 44, *[16, 48] * 15, 16, 64 * 44 + 4]},  # down the columns
        {"size": [64, 64], "counts": [30 * 64 + 30, *[34, 30] * 33, 34]},
    ]
    rows = [
        {"id": k, "image_id": 1, "category_id": category, "iscrowd": int(k == 4), "segmentation": segmentation}
        for k, (category, segmentation) in enumerate(zip((3, 5, 3, 5), written, strict=True), 1)
    ]
    content = json.loads((shapes / "train" / "instances.json").read_text())
    (tmp_path / "four.json").write_text(json.dumps({**content, "images": content["images"][:1], "annotations": rows}))
    annotated = opened(load("train", tiny("coco", dataset__train__instance_json=str(tmp_path / "four.json"))))
    truth = annotated.source.load(0).truth
    assert truth.labels.tolist() == [1, 2, 1, 2]
    assert truth.crowd.tolist() == [False, False, False, True]
    assert all((truth.mask(k) == mask).all() for k, mask in enumerate(covered, 1))
    labels, masks, valid = targets.rule_for("instance", annotated.classes)(truth, truth.planes)
    assert labels.tolist() == [1, 2, 1]
    assert (masks == covered[:3]).all()
    assert (valid == ~(covered[3] & ~covered[1])).all()
