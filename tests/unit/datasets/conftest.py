import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_mcp.formats import panoptic


@pytest.fixture
def shop(belt: Path, tmp_path: Path) -> Path:
    """A private copy of the belt data: `train/`, `val/`, `test/`."""
    return Path(shutil.copytree(belt, tmp_path / "shop"))


@pytest.fixture
def ade_shop(shop: Path) -> Path:
    """The same as ADE: class masks instead of segment ids, one line per pair."""
    for part in ("train", "val"):
        folder = shop / part
        (folder / "masks").mkdir()
        content = json.loads((folder / "annotations_panoptic.json").read_text())
        lines = []
        for record in content["annotations"]:
            ids = panoptic.read_ids(folder / "images_panoptic" / record["file_name"])
            classes = np.zeros(ids.shape, np.uint8)
            for segment in record["segments_info"]:
                classes[ids == segment["id"]] = segment["category_id"]
            Image.fromarray(classes).save(folder / "masks" / record["file_name"])
            image = record["file_name"].replace(".png", ".jpg")
            lines.append(json.dumps({"img": f"images/{image}", "segm": f"masks/{record['file_name']}"}))
        (folder / "annotations.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "label_map_panoptic.json").rename(folder / "label_map.json")
        (folder / "annotations_panoptic.json").unlink()
        (folder / "annotations.json").unlink()
        shutil.rmtree(folder / "images_panoptic")
    return shop


Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def edit() -> Callable[[Path, Edit], None]:
    """Changes a JSON file in place."""

    def change(path: Path, how: Edit) -> None:
        content = json.loads(path.read_text())
        how(content)
        path.write_text(json.dumps(content))

    return change
