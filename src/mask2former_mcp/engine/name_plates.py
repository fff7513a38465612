"""Names on pictures: white on a dark plate that lets the picture through, deepest inside what they name."""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK, DARKNESS = (32, 36, 42), 190  # of the plate: its colour, and its opacity of 255
BESIDE, ABOVE, ROUND = 4, 3, 4  # pixels of the plate around the name, and of its corners
_FONT = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
FINE = 96  # rows and columns in which the deepest pixel is looked for

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


@lru_cache(maxsize=128)  # a name comes again in one of the next images, if seldom with its score
def plate(name: str, size: int) -> Plate:
    """size: of the letters, in pixels."""
    letters = font(size)
    blank = Image.new("L", (1, 1))
    bounds = ImageDraw.Draw(blank).textbbox((0, 0), name, letters, anchor="mm")
    left, top = math.floor(bounds[0]) - BESIDE, math.floor(bounds[1]) - ABOVE
    width, height = math.ceil(bounds[2]) + BESIDE + 1 - left, math.ceil(bounds[3]) + ABOVE + 1 - top
    back, text = blank.resize((width, height)), blank.resize((width, height))
    ImageDraw.Draw(back).rounded_rectangle((0, 0, width - 1, height - 1), ROUND, fill=DARKNESS)
    ImageDraw.Draw(text).text((-left, -top), name, 255, letters, anchor="mm")
    dark, white = (np.asarray(image, dtype=np.float32)[..., None] / 255 for image in (back, text))
    clear = 1 - white
    keeps, adds = 255 * (1 - dark) * clear, dark * clear * np.array(INK, dtype=np.float32) + 255 * white
    return Plate(np.repeat(keeps.round().astype(np.uint8), 3, -1), adds.round().astype(np.uint8), top, left)


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
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic letters and more; no Chinese."""
    return ImageFont.truetype(_FONT, size)


@lru_cache
def legible(name: str) -> bool:
    """Whether the font has all of its characters."""
    known = FT2Font(_FONT)
    return all(known.get_char_index(ord(character)) for character in name)
