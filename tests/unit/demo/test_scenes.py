import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mask2former_mcp.demo import scenes
from mask2former_mcp.formats import coco, panoptic


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_bytes_depend_on_the_seed_not_on_how_many_draw(tmp_path: Path) -> None:
    recipe = {"train": 3, "val": 1, "test": 1, "size": 64}
    one = files(scenes.make(tmp_path / "one", **recipe, workers=1))
    assert files(scenes.make(tmp_path / "two", **recipe, workers=2)) == one
    other = files(scenes.make(tmp_path / "other", **recipe, seed=8, workers=1))
    assert other["train/images/train_00000.jpg"] != one["train/images/train_00000.jpg"]


def test_a_finished_folder_is_left_alone_and_an_unfinished_one_is_made_again(tmp_path: Path) -> None:
    recipe = {"train": 2, "val": 1, "test": 0, "size": 64, "workers": 1}
    told: list[tuple[int, int]] = []
    folder = scenes.make(tmp_path / "x", **recipe, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    before = files(folder)
    scenes.make(folder, **recipe, progress=lambda *_: pytest.fail("nothing is to be done"))
    (folder / "scenes.json").unlink()
    (folder / "train" / "images" / "left_over.jpg").write_bytes(b"")
    assert files(scenes.make(folder, **recipe)) == before


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="other files"):
        scenes.make(tmp_path, train=1, val=1)
    with pytest.raises(ValueError, match="train >= 1"):
        scenes.make(tmp_path / "x", train=0)


def test_both_annotation_files_agree_with_the_masks(belt: Path) -> None:
    train = belt / "train"
    found = panoptic.read(train / "annotations_panoptic.json", train / "images", train / "images_panoptic")
    instances = coco.read(train / "annotations.json", train / "images")
    things = {c.id for c in found.categories if c.isthing}
    for record, image in zip(found.records, instances.records, strict=True):
        ids = found.masks(record)
        assert set(np.unique(ids)) - {0} == {s.id for s in record.segments}
        mine = [ids == s.id for s in record.segments if s.category_id in things]
        assert all((a == b).all() for a, b in zip(mine, instances.masks(image), strict=True))
    names = [c["name"] for c in json.loads((train / "label_map_panoptic.json").read_text())]
    assert names == [c.name for c in found.categories]


def test_scenes_are_varied_enough_to_learn_from() -> None:
    drawn = [scenes.draw(7, "train", index) for index in range(60)]
    uses = Counter(s.category_id for scene in drawn for s in scene.segments)
    assert set(uses) == {c.id for c in scenes.CATEGORIES}
    assert sum(c.isthing for c in scenes.CATEGORIES) >= 5
    assert sum(not c.isthing for c in scenes.CATEGORIES) >= 2
    assert min(uses.values()) >= 20
    void = [float((scene.ids == 0).mean()) for scene in drawn]
    assert 0.002 < np.mean(void) < 0.05
    assert len({scene.pixels.tobytes() for scene in drawn}) == 60
