import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import DatasetError, InvalidRequest
from mask2former_mcp.formats import panoptic
from mask2former_mcp.staging import archives, prepare


@pytest.fixture
def packed(belt: Path, tmp_path: Path) -> Path:
    archive = tmp_path / "data" / "images.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(belt / "val" / "images", "val2017")
    return archive


def extraction(archive: Path) -> dict[str, Any]:
    target = "{home}/" + archives.cache_place(archive)
    return {
        "kind": "extract",
        "source": str(archive),
        "target": target,
        "keys": ("dataset.val.img_dir",),
        "options": {},
    }


def test_placeholders_become_folders_of_the_cache(packed: Path, tmp_path: Path) -> None:
    home, item = tmp_path / "home", extraction(packed)
    told: list[tuple[str, float]] = []
    places = prepare.stage([item], home=home, job_dir=tmp_path, progress=lambda what, part: told.append((what, part)))
    assert (Path(places[item["target"]]) / "val_00000.jpg").is_file()
    assert told[-1] == ("extracting images.tar.gz", 1.0)
    packed.parent.rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", packed.parent)  # copytree keeps times: the same archive
    assert prepare.stage([item], home=home, job_dir=tmp_path) == places


def test_an_archive_that_changed_or_vanished_since_the_plan_is_refused(packed: Path, tmp_path: Path) -> None:
    item = extraction(packed)
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(__file__, "other.py")
    with pytest.raises(DatasetError, match="changed since the plan"):
        prepare.stage([item], home=tmp_path, job_dir=tmp_path)
    packed.unlink()
    with pytest.raises(DatasetError, match="does not exist any more"):
        prepare.stage([item], home=tmp_path, job_dir=tmp_path)


def test_an_archive_of_ades_side_by_side_that_changed_is_refused(packed: Path, tmp_path: Path) -> None:
    masks = packed.with_name("masks.tar.gz")
    shutil.copy(packed, masks)
    root = "{home}/cache/ade/" + archives.together([packed, masks])
    items = [{**extraction(path), "target": f"{root}/{archives.stem(path.name)}"} for path in (packed, masks)]
    places = prepare.stage(items, home=tmp_path / "home", job_dir=tmp_path)
    assert (Path(places[f"{root}/masks"]) / "val_00000.jpg").is_file()
    with tarfile.open(masks, "w:gz") as tar:
        tar.add(__file__, "other.py")
    for home in ("home", "other"):
        with pytest.raises(DatasetError, match="changed since the plan"):
            prepare.stage(items, home=tmp_path / home, job_dir=tmp_path)
    assert not (tmp_path / "other").exists()


def test_a_hold_out_is_written_into_the_jobs_folder_and_not_twice(belt: Path, tmp_path: Path) -> None:
    train, val = "{job_dir}/holdout/train/a.json", "{job_dir}/holdout/val/a.json"
    options = {"format": "coco_panoptic", "fraction": 0.25, "seed": 3, "train": train, "val": val}
    source = belt / "train" / "annotations_panoptic.json"
    item = {"kind": "split", "source": str(source), "target": "{job_dir}/holdout", "keys": (), "options": options}
    places = prepare.stage([item], home=tmp_path / "home", job_dir=tmp_path / "job")
    assert places[val] == str(tmp_path / "job/holdout/val/a.json")
    assert len(panoptic.read(Path(places[val]), Path(), Path()).records) == 3
    written = Path(places[train]).stat().st_mtime_ns
    prepare.stage([item], home=tmp_path / "home", job_dir=tmp_path / "job")
    assert Path(places[train]).stat().st_mtime_ns == written


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="'melt'"):
        prepare.stage([{"kind": "melt", "source": "/x", "target": "y"}], home=tmp_path, job_dir=tmp_path)
