"""Augmentation: which part of an image the network sees, and how its colours change. Pure functions of a generator.

Geometry is decided first and applied to image and labels separately: the image is resized as a whole, the labels are
only read at the positions where the loss compares masks (stride 4), nearest neighbour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mask2former_mcp.spec.dataset import Augmentation

STRIDE = 4
FLIP = 0.5
LARGEST_SHARE = 0.6  # of a crop, for one class; a crop that is all background teaches little
CROP_TRIES = 10

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class View:
    """The source image scaled to `scaled`, and the window (top, left, height, width) of it that is kept, maybe flipped.

    All sizes are (height, width) in pixels.
    """

    source: tuple[int, int]
    scaled: tuple[int, int]
    top: int
    left: int
    size: tuple[int, int]
    flip: bool = False

    def image(self, image: Image) -> Image:
        """[H, W, 3] of the source -> [h, w, 3] of the view."""
        shrinks = self.scaled[0] < self.source[0] or self.scaled[1] < self.source[1]
        if self.scaled != self.source:
            # Area averaging when shrinking: plain bilinear would alias.
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, self.scaled[::-1], interpolation=method)
        part = image[self.top : self.top + self.size[0], self.left : self.left + self.size[1]]
        return np.ascontiguousarray(part[:, ::-1] if self.flip else part)

    def labels(self, planes: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """[P, H, W] of the source -> [P, ceil(h / 4), ceil(w / 4)], each read at the centre of its 4 x 4 block."""
        rows = self._positions(0, self.top)
        columns = self._positions(1, self.left)
        if self.flip:  # mirror about the window, whose width need not be a multiple of the stride
            columns = self._source(1, self.left + self.size[1] - 1 - _centres(self.size[1]))
        return planes[:, rows[:, None], columns[None, :]]

    def _positions(self, axis: int, start: int) -> NDArray[np.int64]:
        return self._source(axis, start + _centres(self.size[axis]))

    def _source(self, axis: int, scaled: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pixel of the source that is nearest to a pixel of the scaled image."""
        return ((scaled + 0.5) * self.source[axis] / self.scaled[axis]).astype(np.int64).clip(0, self.source[axis] - 1)


def whole(source: tuple[int, int], scaled: tuple[int, int]) -> View:
    """The whole image at another size."""
    return View(source, scaled, 0, 0, scaled)


def shortest_edge(size: tuple[int, int], edge: int, longest: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter edge is `edge`, or less where the longer would pass `longest`."""
    scale = min(edge / min(size), longest / max(size))
    height, width = (max(1, int(n * scale + 0.5)) for n in size)
    return height, width


def draw_view(
    rng: np.random.Generator,
    source: tuple[int, int],
    settings: Augmentation,
    class_map: Callable[[View], NDArray[np.int64]],
) -> View:
    """A training view: a size, a window where no class fills more than 60 % (10 tries), a flip with probability 1/2.

    class_map: the classes [h, w] that a view sees, 0 where there is none.
    """
    edge = int(rng.choice(np.asarray(settings.train_min_size)))
    scaled = shortest_edge(source, edge, settings.train_max_size)
    size = (min(settings.train_crop_size[0], scaled[0]), min(settings.train_crop_size[1], scaled[1]))
    view = View(source, scaled, 0, 0, size)
    for _ in range(CROP_TRIES):
        top = int(rng.integers(scaled[0] - size[0] + 1))
        left = int(rng.integers(scaled[1] - size[1] + 1))
        view = View(source, scaled, top, left, size)
        if size == scaled or _varied(class_map(view)):
            break
    return View(source, scaled, view.top, view.left, size, flip=bool(rng.random() < FLIP))


def jitter(rng: np.random.Generator, image: Image) -> Image:
    """SSD's colour jitter (Liu et al., 2016, https://arxiv.org/abs/1512.02325): each step with probability 1/2.

    Brightness +-32, contrast 0.5..1.5 (before or after the others), saturation 0.5..1.5, hue +-18 of 180.
    """
    contrast_first = bool(rng.integers(2))
    image = _linear(image, 1.0, float(rng.uniform(-32, 32))) if rng.random() < 0.5 else image
    if contrast_first:
        image = _contrast(rng, image)
    saturation = float(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-18, 19)) if rng.random() < 0.5 else 0
    if saturation != 1.0 or hue:
        values = np.arange(256)
        table = np.stack([(values + hue) % 180, (values * saturation).clip(0, 255), values], -1).astype(np.uint8)[None]
        image = cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table), cv2.COLOR_HSV2RGB)
    if not contrast_first:
        image = _contrast(rng, image)
    return image


def padded(image: Image, size: tuple[int, int]) -> Image:
    """[h, w, 3] with zeros right and below, up to [H, W, 3]."""
    if image.shape[:2] == size:
        return image
    canvas = np.zeros((*size, 3), dtype=np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def _contrast(rng: np.random.Generator, image: Image) -> Image:
    return _linear(image, float(rng.uniform(0.5, 1.5)), 0.0) if rng.random() < 0.5 else image


def _linear(image: Image, factor: float, offset: float) -> Image:
    table = (np.arange(256) * factor + offset).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table), dtype=np.uint8)


def _varied(class_map: NDArray[np.int64]) -> bool:
    counts = np.bincount(class_map.reshape(-1))[1:]
    present: Sequence[int] = counts[counts > 0].tolist()
    return len(present) > 1 and max(present) < LARGEST_SHARE * sum(present)


def _centres(length: int) -> NDArray[np.int64]:
    """Position in each block of `STRIDE` that stands for the block; the last block may be cut."""
    return np.minimum(np.arange(0, length, STRIDE) + STRIDE // 2, length - 1)
