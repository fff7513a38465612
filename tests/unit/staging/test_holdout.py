import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats import ade, coco, panoptic
from mask2former_mcp.staging import holdout


@given(st.integers(2, 5000), st.floats(0, 1))
def test_both_sides_keep_at_least_one_image(images: int, fraction: float) -> None:
    train, val = holdout.sizes(images, fraction)
    assert train + val == images
    assert min(train, val) >= 1


@given(st.sets(st.integers(), min_size=2, max_size=200), st.integers(0, 99), st.randoms())
def test_the_choice_depends_on_ids_and_seed_not_on_their_order(ids: set[int], seed: int, shuffled: object) -> None:
    order = list(ids)
    shuffled.shuffle(order)  # type: ignore[attr-defined]
    assert holdout.choose(order, seed=seed) == holdout.choose(ids, seed=seed)


def test_one_image_cannot_be_divided() -> None:
    with pytest.raises(DatasetError, match="at least 2"):
        holdout.sizes(1)


def test_panoptic_annotations_are_divided_and_both_files_are_whole(belt: Path, tmp_path: Path) -> None:
    source, train, val = belt / "train/annotations_panoptic.json", tmp_path / "t.json", tmp_path / "v" / "v.json"
    assert holdout.split(source, "coco_panoptic", train, val, seed=1) == (11, 1)
    sets = [panoptic.read(path, Path(), Path()) for path in (source, train, val)]
    ids = [{r.image_id for r in found.records} for found in sets]
    assert ids[1] | ids[2] == ids[0]
    assert not ids[1] & ids[2]
    assert sets[0].categories == sets[1].categories == sets[2].categories
    assert {r.image_id: r for r in sets[0].records} == {r.image_id: r for s in sets[1:] for r in s.records}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(belt: Path, tmp_path: Path) -> None:
    source = belt / "train/annotations.json"
    written = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        holdout.split(source, "coco", tmp_path / "train", tmp_path / name, seed=seed, fraction=0.5)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] != written[2]


def test_objects_follow_their_images_and_images_without_objects_count(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 4, "height": 4} for i in range(10)]
    objects = [
        {"id": i, "image_id": i, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]], "iscrowd": 0}
        for i in range(0, 10, 2)
    ]
    source = tmp_path / "annotations.json"
    content = {"info": {"year": 1}, "annotations": objects, "categories": [{"id": 1, "name": "x"}], "images": images}
    source.write_text(json.dumps(content))
    assert holdout.split(source, "coco", tmp_path / "t", tmp_path / "v", seed=0, fraction=0.3) == (7, 3)
    train, val = coco.read(tmp_path / "t", Path()), coco.read(tmp_path / "v", Path())
    assert len(train.records) == 7
    assert sum(len(r.instances) for s in (train, val) for r in s.records) == 5
    assert json.loads((tmp_path / "v").read_text())["info"] == {"year": 1}


def test_ade_lines_are_divided(tmp_path: Path) -> None:
    source = tmp_path / "annotations.jsonl"
    source.write_text("\n".join(json.dumps({"img": f"{i}.jpg", "segm": f"{i}.png"}) for i in range(20)))
    assert holdout.split(source, "ade", tmp_path / "t", tmp_path / "v", seed=5) == (18, 2)
    names = {r.image.name for part in ("t", "v") for r in ade.read(tmp_path / part, Path())}
    assert names == {f"{i}.jpg" for i in range(20)}


def test_a_broken_source_is_named_and_no_half_file_stays(tmp_path: Path) -> None:
    source = tmp_path / "annotations.json"
    source.write_text('{"images": [{"id": 1}, {"id": 2}], "annotations": [{"id": 1')
    with pytest.raises(DatasetError, match=r"annotations\.json"):
        holdout.split(source, "coco", tmp_path / "t", tmp_path / "v", seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["annotations.json"]
