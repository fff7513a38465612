"""A job's own look at its data, before it starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.datasets.verify import verify
from mask2former_mcp.errors import DatasetError

Json = dict[str, Any]
Change = Callable[[Path, Callable[[Json], object]], None]
PANOPTIC = "annotations_panoptic.json"


def prepared(shop: Path) -> Json:
    section = {
        part: {
            "type": "coco_panoptic",
            "img_dir": str(shop / part / "images"),
            "panoptic_json": str(shop / part / PANOPTIC),
            "panoptic_dir": str(shop / part / "images_panoptic"),
        }
        for part in ("train", "val")
    }
    return {**section, "label_map": str(shop / "train" / "label_map_panoptic.json")}


def test_a_job_starts_only_on_data_that_is_there_and_fits_together(shop: Path, edit: Change) -> None:
    verify(prepared(shop), ("train", "val"))
    edit(shop / "val" / PANOPTIC, lambda c: c["categories"][0].update(name="crate"))
    with pytest.raises(DatasetError, match="'crate'"):
        verify(prepared(shop), ("train", "val"))
    (shop / "train" / "images" / "train_00004.jpg").unlink()
    with pytest.raises(DatasetError, match=r"train_00004\.jpg"):
        verify(prepared(shop), ("train",))
