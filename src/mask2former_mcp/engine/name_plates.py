"""Names on pictures: white on a dark plate that lets the picture through, deepest inside what they name."""

import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK, DARKNESS = (32, 36, 42), 190  # of the plate: its colour, and its opacity of 255
BESIDE, ABOVE, ROUND = 4, 3, 4  # pixels of the plate around the name, and of its corners
_FONT = Path(__file__).with_name("fonts") / "DejaVuSans.ttf"
SWASH = 3  # pixels of a letter that may lie outside its box, at most
FINE = 64  # rows and columns in which the deepest pixel is looked for

Pixels = NDArray[np.uint8]  # [h, w, 3]


@dataclass(frozen=True, slots=True)
class Plate:
    """A name as it is drawn: the picture's values times `keeps` / 255, plus `adds`. top, left: of its corner, from the
    point that it names."""

    keeps: Pixels
    adds: Pixels
    top: int
    left: int

    def put(self, picture: Pixels, row: int, column: int) -> None:
        """Draws it over the pixel, moved inwards where it would leave the picture, cut where it is larger."""
        height, width = self.keeps.shape[:2]
        top = max(0, min(row + self.top, picture.shape[0] - height))
        left = max(0, min(column + self.left, picture.shape[1] - width))
        below = picture[top : top + height, left : left + width]
        inside = slice(below.shape[0]), slice(below.shape[1])
        below[...] = cv2.add(cv2.multiply(below, self.keeps[inside], scale=1 / 255), self.adds[inside])


def plate(name: str, size: int) -> Plate:
    """size: of the letters, in pixels."""
    leftwards = not name.isascii() and any(unicodedata.bidirectional(character) in ("R", "AL") for character in name)
    words = [_word(word, size) for word in ([name] if leftwards else name.split(" "))]
    space = _space(size)
    height = words[0].shape[0] + 2 * (ABOVE - SWASH)
    width = sum(word.shape[1] - 2 * SWASH + space for word in words) - space + 2 * BESIDE
    ink: NDArray[np.uint8] = np.zeros((height, width), dtype=np.uint8)
    column = BESIDE - SWASH
    for word in words:
        below = ink[ABOVE - SWASH : height - ABOVE + SWASH, column : column + word.shape[1]]
        np.maximum(below, word, out=below)
        column += word.shape[1] - 2 * SWASH + space
    found = Plate(cv2.applyColorMap(ink, _KEEPS), cv2.applyColorMap(ink, _ADDS), -(height // 2), -(width // 2))
    for turned in (np.s_[:], np.s_[::-1]):
        for mirrored in (np.s_[:], np.s_[::-1]):
            found.keeps[turned, mirrored][:ROUND, :ROUND] = _CORNER_KEEPS
            found.adds[turned, mirrored][:ROUND, :ROUND] = _CORNER_ADDS
    return found


@lru_cache(maxsize=1024)  # the same few come again and again, which cannot be said of names with their scores
def _word(word: str, size: int) -> NDArray[np.uint8]:
    """[height of a line, w] opacity of its letters, with SWASH pixels around."""
    letters = font(size)
    _, top, _, bottom = letters.getbbox("\u00c1gj|")
    width, height = math.ceil(letters.getlength(word)), math.ceil(bottom) - math.floor(top)
    image = Image.new("L", (width + 2 * SWASH, height + 2 * SWASH))
    ImageDraw.Draw(image).text((SWASH, SWASH - math.floor(top)), word, 255, letters)
    return np.asarray(image)


@lru_cache
def _space(size: int) -> int:
    return round(font(size).getlength(" "))


def _drawn(dark: NDArray[np.float64], white: NDArray[np.float64]) -> tuple[Pixels, Pixels]:
    """`keeps` and `adds` under a plate and letters of these opacities, 0..1."""
    keeps, adds = 255 * (1 - dark) * (1 - white), (dark * (1 - white))[..., None] * INK + 255 * white[..., None]
    return np.repeat(keeps.round().astype(np.uint8)[..., None], 3, -1), adds.round().astype(np.uint8)


def _corner() -> NDArray[np.float64]:
    """[ROUND, ROUND] how much of each pixel the plate has at its upper left corner."""
    rows, columns = np.indices((ROUND, ROUND)) - (ROUND - 0.5)
    inside: NDArray[np.float64] = np.clip(ROUND + 0.5 - np.hypot(rows, columns), 0, 1)
    return inside


_OPACITY = np.arange(256) / 255
_KEEPS, _ADDS = (table[:, None] for table in _drawn(np.full(256, DARKNESS / 255), _OPACITY))
_CORNER_KEEPS, _CORNER_ADDS = _drawn(_corner() * DARKNESS / 255, np.zeros((ROUND, ROUND)))


def deepest(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(row, column) of the pixel that is farthest from the edge: on the object even where that is bent or hollow.

    mask: not empty. Of a large one only some rows and columns are looked at, evenly spaced, unless they miss it.
    """
    for step in (-(-max(mask.shape) // FINE), 1):
        inner = cv2.copyMakeBorder(mask[::step, ::step].view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
        _, depth, _, (column, row) = cv2.minMaxLoc(cv2.distanceTransform(inner, cv2.DIST_L2, 3))
        if depth:
            break
    return (row - 1) * step, (column - 1) * step


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans: Latin, Greek, Cyrillic, Arabic letters and more; no Chinese."""
    return ImageFont.truetype(_FONT, size)


@lru_cache(maxsize=1024)
def legible(name: str) -> bool:
    """Whether the font has all of its characters."""
    return name.isprintable() and all(_glyph(character) != _glyph("\uffff") for character in name)


@lru_cache(maxsize=1024)
def _glyph(character: str) -> bytes:
    """Its picture: for what the font does not have a box, as for U+FFFF, which is no character."""
    return bytes(ImageFont.truetype(_FONT, 16, layout_engine=ImageFont.Layout.BASIC).getmask(character))
