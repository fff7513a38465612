"""Training curves as a PNG, drawn with Pillow: no plotting library for a handful of lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Series = Sequence[tuple[float, float]]  # (epoch, value)
_COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14))
_SIZE = (900, 420)
_MARGIN = 48


def curves(series: Mapping[str, Series], target: Path, *, title: str = "") -> Path:
    """Lines over epochs, one colour and one legend entry a name; returns `target`.

    Names keep their own epochs (metrics are logged at different cadence). Raises ValueError when there is no point.
    """
    drawn = {name: sorted(points) for name, points in series.items() if points}
    if not drawn:
        raise ValueError("no points to draw: the job has no metrics yet")
    image = Image.new("RGB", _SIZE, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    epochs = [epoch for points in drawn.values() for epoch, _ in points]
    values = [value for points in drawn.values() for _, value in points]
    window = (min(epochs), max(epochs), min(0.0, *values), max(values))
    _axes(draw, font, window, title)
    for index, (name, points) in enumerate(drawn.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        dots = [_place(epoch, value, window) for epoch, value in points]
        draw.line(dots, fill=colour, width=2)
        for x, y in dots:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        draw.text((_MARGIN + 8 + 130 * index, _SIZE[1] - 18), f"{name} {points[-1][1]:.3f}", fill=colour, font=font)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target)
    return target


def _axes(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, window: tuple[float, ...], title: str
) -> None:
    grey = (170, 170, 170)
    left, top, right, bottom = _MARGIN, _MARGIN, _SIZE[0] - _MARGIN, _SIZE[1] - _MARGIN
    draw.text((_MARGIN, 14), title, fill=(33, 37, 41), font=font)
    for step in range(5):
        value = window[2] + (window[3] - window[2]) * step / 4
        y = bottom - (bottom - top) * step / 4
        draw.line((left, y, right, y), fill=(230, 230, 230))
        draw.text((6, y - 7), f"{value:.2f}", fill=grey, font=font)
    draw.text((left, bottom + 4), f"epoch {window[0]:g}", fill=grey, font=font)
    draw.text((right - 50, bottom + 4), f"{window[1]:g}", fill=grey, font=font)


def _place(epoch: float, value: float, window: tuple[float, ...]) -> tuple[float, float]:
    first, last, low, high = window
    x = _MARGIN + (_SIZE[0] - 2 * _MARGIN) * ((epoch - first) / (last - first) if last > first else 0.5)
    y = _SIZE[1] - _MARGIN - (_SIZE[1] - 2 * _MARGIN) * ((value - low) / (high - low) if high > low else 0.5)
    return x, y
