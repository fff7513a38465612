import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.datasets import background, facts
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.errors import DatasetError, NotReady

Change = Callable[[Path, Callable[[dict[str, Any]], object]], None]


def local(path: Path) -> DatasetRef:
    return DatasetRef.parse(str(path))


def test_classes_are_counted_and_raw_ids_need_more_room(shop: Path) -> None:
    found = facts.facts(local(shop / "train"), "coco_panoptic")
    assert (found.num_categories, found.max_category_id, found.images) == (9, 13, 12)
    assert facts.num_classes(found, True) == 9
    assert facts.num_classes(found, False) == 13
    assert found.categories[0] == (1, "carton", True)
    assert found.label_map == found.categories
    assert set(found.hashes) == {"annotations_panoptic.json", "label_map_panoptic.json"}


def test_instances_and_ade_have_facts_too(shop: Path) -> None:
    assert facts.facts(local(shop / "train"), "coco").num_categories == 6


def test_ade_takes_its_classes_from_the_label_map(ade_shop: Path) -> None:
    found = facts.facts(local(ade_shop / "train"), "ade")
    assert (found.num_categories, found.max_category_id, found.images) == (9, 13, 12)
    (ade_shop / "train" / "label_map.json").unlink()
    with pytest.raises(DatasetError, match="no classes") as caught:
        facts.facts(local(ade_shop / "train"), "ade")
    assert "label_map.json" in caught.value.fix


def test_the_cache_notices_a_changed_file(shop: Path, tmp_path: Path, edit: Change) -> None:
    ref, home = local(shop / "val"), tmp_path / "home"
    first = facts.facts(ref, "coco_panoptic", home=home)
    assert facts.facts(ref, "coco_panoptic", home=home) == first
    assert len(list((home / "cache" / "facts").iterdir())) == 1
    edit(shop / "val" / "annotations_panoptic.json", lambda c: c["annotations"].pop())
    assert facts.facts(ref, "coco_panoptic", home=home).images == first.images - 1


def test_an_empty_annotation_file_has_no_facts(shop: Path, edit: Change) -> None:
    edit(shop / "val" / "annotations_panoptic.json", lambda c: c.update(annotations=[]))
    with pytest.raises(DatasetError, match="no annotated images"):
        facts.facts(local(shop / "val"), "coco_panoptic")


def test_a_long_read_goes_on_in_the_background_and_the_same_call_finds_it(shop: Path, tmp_path: Path) -> None:
    ref, home = local(shop / "train"), tmp_path / "home"
    with pytest.raises(NotReady) as caught:
        facts.facts(ref, "coco_panoptic", home=home, deadline_s=-1)
    assert caught.value.details["bytes_total"] == (shop / "train" / "annotations_panoptic.json").stat().st_size
    work = background.find({"kind": "facts", "dataset": ref.uri, "format": "coco_panoptic"}, home)
    wait(work)
    assert facts.facts(ref, "coco_panoptic", home=home, deadline_s=-1).images == 12


def test_what_made_the_background_fail_is_told_once(shop: Path, tmp_path: Path) -> None:
    ref, home = local(shop / "train"), tmp_path / "home"
    (shop / "train" / "annotations_panoptic.json").write_text('{"images": [1')
    with pytest.raises(NotReady):
        facts.facts(ref, "coco_panoptic", home=home, deadline_s=-1)
    wait(background.find({"kind": "facts", "dataset": ref.uri, "format": "coco_panoptic"}, home))
    with pytest.raises(DatasetError, match="annotations_panoptic"):
        facts.facts(ref, "coco_panoptic", home=home, deadline_s=-1)


def wait(work: background.Work, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while work.finished() is None:
        assert time.monotonic() < end, (work.folder / "log.txt").read_text()
        time.sleep(0.02)
