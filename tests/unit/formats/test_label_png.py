"""Label maps as PNG files: what other readers find in them is what was written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former_mcp.formats import label_png


@pytest.mark.parametrize(("dtype", "channels", "mode"), [("u1", 1, "L"), ("u2", 1, "I;16"), ("u1", 3, "RGB")])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (64, 48)])
def test_every_value_of_every_kind_comes_back(
    tmp_path: Path, dtype: str, channels: int, mode: str, size: tuple[int, int]
) -> None:
    shape = (*size, channels) if channels > 1 else size
    values = np.random.default_rng(0).integers(0, 256 ** np.dtype(dtype).itemsize, shape).astype(dtype)
    label_png.write(tmp_path / "a.png", values)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
        assert (np.asarray(image) == values).all()


def test_a_map_of_few_regions_is_smaller_than_pillow_writes_it(tmp_path: Path) -> None:
    rows, columns = np.indices((200, 300))
    values = ((rows - 90) ** 2 + (columns - 140) ** 2 < 70**2).astype(np.uint8) + (columns > 250) * np.uint8(2)
    label_png.write(tmp_path / "ours.png", np.repeat(values[..., None], 3, -1))
    Image.fromarray(np.repeat(values[..., None], 3, -1)).save(tmp_path / "pillow.png", compress_level=3)
    assert (tmp_path / "ours.png").stat().st_size < (tmp_path / "pillow.png").stat().st_size
