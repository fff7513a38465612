"""Pictures to look at: rows of panels (input, ground truth, prediction) under their titles, on one sheet."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_INK = (33, 37, 41)
_PAPER = (255, 255, 255)
_GAP = 6
_HEADER = 24


def sheet(pictures: Sequence[Path], target: Path, *, titles: Sequence[str] = (), width: int = 900) -> Path:
    """Stack pictures of equal meaning (each already side by side) under one header line; returns `target`.

    `titles` are spread evenly over the width, one per column of the pictures. Raises ValueError without pictures.
    """
    if not pictures:
        raise ValueError("no pictures to put on the sheet: the folder of panels is empty")
    rows = [_scaled(path, width) for path in pictures]
    height = _HEADER + sum(row.height + _GAP for row in rows) + _GAP
    canvas = Image.new("RGB", (width + 2 * _GAP, height), _PAPER)
    _write_titles(canvas, titles, width)
    top = _HEADER
    for row in rows:
        canvas.paste(row, (_GAP, top))
        top += row.height + _GAP
    target.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(target, optimize=True)
    return target


def _scaled(path: Path, width: int) -> Image.Image:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def _write_titles(canvas: Image.Image, titles: Sequence[str], width: int) -> None:
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=14)
    for column, title in enumerate(titles):
        centre = _GAP + width * (column + 0.5) / len(titles)
        draw.text((centre, _HEADER / 2), title, fill=_INK, font=font, anchor="mm")
