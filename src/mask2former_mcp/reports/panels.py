"""Pictures to look at: panels (each with input, ground truth and prediction) together on one sheet."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

_PAPER = (255, 255, 255)
_GAP = 8


def sheet(pictures: Sequence[Path], target: Path, *, columns: int = 2, width: int = 800) -> Path:
    """Lay pictures out in rows of `columns`, each scaled to `width` pixels, and write `target`; returns it.

    Raises ValueError when there is no picture.
    """
    if not pictures:
        raise ValueError("no pictures to put on the sheet: the folder of panels is empty")
    panels = [_scaled(path, width) for path in pictures]
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    wide = max(len(row) for row in rows)
    size = (wide * (width + _GAP) + _GAP, sum(heights) + _GAP * (len(rows) + 1))
    canvas = Image.new("RGB", size, _PAPER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            canvas.paste(panel, (_GAP + column * (width + _GAP), top))
        top += height + _GAP
    target.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(target, optimize=True)
    return target


def _scaled(path: Path, width: int) -> Image.Image:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
