"""Draws one scene: background, products from the lowest to the topmost, dirt, then the camera.

Lengths are in design pixels (a scene is 192 of them wide, whatever its size in pixels).
"""

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mask2former_mcp.demo.products import PRODUCTS, Build, Field, Product
from mask2former_mcp.formats.panoptic import Segment
from mask2former_mcp.formats.records import Category

DESIGN = 192
TYPICAL = 0.85  # how often a product wears its class's colours
THINGS = tuple(Category(i + 1, p.name, True) for i, p in enumerate(PRODUCTS))
STUFF = (Category(11, "belt", False), Category(12, "rail", False), Category(13, "floor", False))
_SLIVER = 70  # design pixels; less than this left visible is void: nobody could say what it is


@dataclass(frozen=True, slots=True)
class Scene:
    """One drawn image: [S, S, 3] uint8, [S, S] segment ids (0 void), the segments that are visible."""

    pixels: NDArray[np.uint8]
    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class _Belt:
    """Where the belt runs: its angle, the offset of its middle line, half its width, the rail's width."""

    angle: float
    offset: float
    half: float
    rail: float

    def frame(self, x: Field, y: Field) -> tuple[Field, Field]:
        """(along, across) of design coordinates."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return (x - 96) * cos + (y - 96) * sin, -(x - 96) * sin + (y - 96) * cos + self.offset

    def point(self, along: float, across: float) -> tuple[float, float]:
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        v = across - self.offset
        return 96 + along * cos - v * sin, 96 + along * sin + v * cos


class Painter:
    """The canvas of one scene while it is drawn: `rgb` [S, S, 3] 0..1 and `ids` [S, S]."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size, self.unit = rng, size, size / DESIGN
        ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) + np.float32(0.5)
        self.x, self.y = xs / np.float32(self.unit), ys / np.float32(self.unit)
        self.rgb = np.zeros((size, size, 3), np.float32)
        self.ids = np.zeros((size, size), np.int32)
        self.segments: list[Segment] = []
        self.placed: list[tuple[float, float]] = []
        turn = rng.uniform(0, 2 * np.pi)
        self.light = (float(np.cos(turn)), float(np.sin(turn)))  # towards the lamp
        self.belt = _Belt(
            rng.normal(0, 0.06) + (np.pi / 2 if rng.random() < 0.3 else 0),
            rng.uniform(-12, 12),
            rng.uniform(62, 76),
            rng.uniform(9, 13),
        )

    def scene(self) -> Scene:
        self._background()
        for index in self._choice():
            self._thing(PRODUCTS[index], THINGS[index])
        self._dirt()
        self._forget_slivers()
        pixels = self._camera()
        present = set(np.unique(self.ids).tolist())
        return Scene(pixels, self.ids, tuple(s for s in self.segments if s.id in present))

    def noise(self, grain: float, shape: tuple[int, int] | None = None) -> Field:
        """Smooth noise in -1..1 with this grain in design pixels."""
        height, width = shape or (self.size, self.size)
        step = max(1, round(grain * self.unit))
        small = self.rng.random((height // step + 3, width // step + 3), dtype=np.float32) * 2 - 1
        if step == 1:
            return small[:height, :width]
        wide = (small.shape[1] * step, small.shape[0] * step)
        smooth = np.asarray(Image.fromarray(small).resize(wide, Image.Resampling.BICUBIC), np.float32)
        return smooth[step : step + height, step : step + width]

    def _segment(self, category: Category) -> int:
        id_ = category.id * 65_537 + 4_099 * len(self.segments) + 257
        self.segments.append(Segment(id_, category.id))
        return id_

    def _background(self) -> None:
        along, across = self.belt.frame(self.x, self.y)
        belt, rail, floor = STUFF
        outer = np.abs(across) - self.belt.half - self.belt.rail
        self.rgb[:] = self._floor()
        self.ids[:] = self._segment(floor)
        self.rgb *= (1 - 0.5 * np.exp(-np.maximum(outer, 0) / 4))[..., None]  # the rail stands above the floor
        self._cover(rail, outer, self._rail(along, across))
        self._cover(belt, np.abs(across) - self.belt.half, self._belt(along, across))
        seam = np.abs(np.abs(across) - self.belt.half)
        self.rgb *= (1 - 0.5 * np.exp(-((seam / 1.6) ** 2)))[..., None]

    def _cover(self, category: Category, distance: Field, rgb: Field) -> None:
        if (distance < 0).any():
            self.rgb += (rgb - self.rgb) * np.clip(0.5 - distance * self.unit, 0, 1)[..., None]
            self.ids[distance < 0] = self._segment(category)

    def _floor(self) -> Field:
        base = np.array([0.53, 0.49, 0.44], np.float32) * np.float32(self.rng.uniform(0.85, 1.15))
        grain = 1 + 0.07 * self.noise(1) + 0.12 * self.noise(24) + 0.08 * self.noise(5)
        return base * grain[..., None] - (self.noise(2) > 0.75)[..., None] * np.float32(0.12)

    def _rail(self, along: Field, across: Field) -> Field:
        rng = self.rng
        depth = (np.abs(across) - self.belt.half) / self.belt.rail  # 0 at the belt, 1 at the floor
        sheen = 0.26 * np.exp(-(((depth - rng.uniform(0.3, 0.7)) / 0.22) ** 2))
        value = 0.6 + sheen + 0.05 * self.noise(1) + 0.05 * np.sin(across * 5.1) + 0.06 * self.noise(40)
        pitch = rng.uniform(34, 48)
        middle = np.abs(across) - self.belt.half - self.belt.rail / 2
        bolt = np.hypot((along + rng.uniform(0, pitch)) % pitch - pitch / 2, middle)
        value = value * (1 - 0.5 * np.exp(-(((bolt - 2.6) / 0.8) ** 2)))
        return np.stack([value * 0.97, value, value * 1.04], -1)

    def _belt(self, along: Field, across: Field) -> Field:
        rng = self.rng
        base = np.array([0.2, 0.215, 0.23], np.float32) * np.float32(rng.uniform(0.85, 1.6))
        weave = 0.14 * np.sin(along * 2.1 + across * 2.1) * np.sin(along * 2.1 - across * 2.1)
        rgb = base * (1 + weave + 0.16 * self.noise(30) + 0.1 * self.noise(4) + 0.08 * self.noise(1))[..., None]
        pitch, bend = rng.uniform(44, 62), rng.choice([-0.45, 0.45])
        ridge = np.abs((along + bend * np.abs(across) + rng.uniform(0, pitch)) % pitch - pitch / 2)
        rgb += (0.06 * np.exp(-((ridge / 1.6) ** 2)) - 0.05 * np.exp(-(((ridge - 3) / 1.6) ** 2)))[..., None]
        for _ in range(rng.integers(0, 4)):  # scratches
            turn, offset, middle = rng.normal(0, 0.25), rng.uniform(-60, 60), rng.uniform(-80, 80)
            line = np.abs(across * np.cos(turn) + along * np.sin(turn) - offset)
            rgb += (0.07 * np.exp(-((line / 0.7) ** 2)) * (np.abs(along - middle) < 35))[..., None]
        return rgb

    def _choice(self) -> Iterator[int]:
        deck = np.arange(2 * len(PRODUCTS)) % len(PRODUCTS)
        for index in self.rng.permutation(deck)[: self.rng.integers(4, 8)]:
            yield int(index)

    def _place(self) -> tuple[float, float]:
        """A centre on the belt; the roomiest of a few draws, unless one is free at once."""
        best, room = (96.0, 96.0), -1.0
        for _ in range(10):
            across = self.rng.uniform(-1, 1) * (self.belt.half - 16)
            x, y = self.belt.point(self.rng.uniform(-78, 78), across)
            free = min((float(np.hypot(x - u, y - v)) for u, v in self.placed), default=99.0)
            if free > room:
                best, room = (x, y), free
            if free > self.rng.uniform(28, 52):
                break
        self.placed.append(best)
        return best

    def _build(self, product: Product, shape: tuple[int, int], a: float) -> Build:
        rng = self.rng
        worn = product if rng.random() < TYPICAL else PRODUCTS[rng.integers(len(PRODUCTS))]
        hue, saturation, value = (rng.uniform(*r) for r in worn.hues)
        accent = _rgb(rng.choice([0.0, 0.08, 0.14, 0.55, 0.97]), rng.uniform(0.1, 0.75), rng.uniform(0.75, 0.95))
        b = a * rng.uniform(*product.aspect)
        return Build(a, b, _rgb(hue % 1, saturation, value), accent, rng.random(), partial(self.noise, shape=shape))

    def _thing(self, product: Product, category: Category) -> None:
        """Draws one product in a window around it: its shadow on what is there, then itself."""
        rng = self.rng
        cx, cy = self._place()
        a = rng.uniform(*product.half_length)
        reach = a * 1.15 + product.height + 3
        left, top = (max(0, int((c - reach) * self.unit)) for c in (cx, cy))
        right, bottom = (min(self.size, int((c + reach) * self.unit) + 1) for c in (cx, cy))
        if right - left < 4 or bottom - top < 4:
            return
        window = np.s_[top:bottom, left:right]
        turn = rng.uniform(0, 2 * np.pi)
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        dx, dy = self.x[window] - np.float32(cx), self.y[window] - np.float32(cy)
        x, y = dx * cos + dy * sin, dy * cos - dx * sin
        build = self._build(product, (bottom - top, right - left), a)
        distance = product.shape(x, y, build)
        self._shadow(window, distance, product.height)
        rgb = product.surface(x, y, distance, build)
        rgb = self._shade(rgb, distance, product)
        alpha = np.clip(0.5 - distance * self.unit, 0, 1)[..., None]
        self.rgb[window] += (rgb - self.rgb[window]) * alpha
        self.ids[window][distance < 0] = self._segment(category)

    def _shadow(self, window: tuple[slice, slice], distance: Field, height: float) -> None:
        rows, columns = distance.shape
        shift = [round(-part * height * 0.75 * self.unit) for part in self.light]
        solid = Image.fromarray(((distance < 0) * np.uint8(255)).astype(np.uint8))
        cast = Image.new("L", (columns, rows))
        cast.paste(solid, (shift[0], shift[1]))
        soft = np.asarray(cast.filter(ImageFilter.GaussianBlur(height * 0.32 * self.unit)), np.float32) / 255
        contact = np.clip(1 - distance / 3.5, 0, 1)
        self.rgb[window] *= (1 - 0.62 * soft)[..., None] * (1 - 0.3 * contact)[..., None]

    def _shade(self, rgb: Field, distance: Field, product: Product) -> Field:
        """Lambert and a highlight on a surface that rises from the edge over `bevel` pixels."""
        rise = np.clip(-distance / product.bevel, 0, 1)
        height = np.sqrt(np.clip(1 - (1 - rise) ** 2, 1e-4, 1)) * product.bevel * self.unit
        slope_y, slope_x = np.gradient(height)
        steep = np.sqrt(1 + slope_x**2 + slope_y**2)
        towards = -(slope_x * self.light[0] + slope_y * self.light[1])
        lambert = (towards * 0.55 + 0.85) / steep
        spark = np.clip((towards * 0.62 + 0.78) / steep, 0, 1) ** 40 * product.gloss * 0.8
        shaded: Field = rgb * (0.42 + 0.62 * lambert)[..., None] + spark[..., None]
        return shaded

    def _dirt(self) -> None:
        """Smudges, drops of water, and sometimes the camera's housing in a corner: pixels that nobody labelled."""
        rng = self.rng
        for _ in range(rng.integers(0, 3)):
            cx, cy, r = rng.uniform(0, DESIGN), rng.uniform(0, DESIGN), rng.uniform(6, 13)
            d = np.hypot(self.x - cx, self.y - cy) * (1 + 0.25 * self.noise(9)) - r
            cover = np.clip(0.5 - d * self.unit * 0.5, 0, 1)[..., None]
            tone = np.array([0.23, 0.19, 0.13] if rng.random() < 0.6 else [0.75, 0.78, 0.8], np.float32)
            stain = tone * (1 + 0.25 * self.noise(2))[..., None]
            self.rgb += (stain - self.rgb) * cover * np.float32(0.82)
            self.ids[d < 0] = 0
        if rng.random() < 0.25:
            corner = np.array([rng.choice([0, DESIGN]), rng.choice([0, DESIGN])], np.float32)
            d = np.abs(self.x - corner[0]) + np.abs(self.y - corner[1]) - rng.uniform(20, 38)
            self.rgb *= 1 - np.clip(0.5 - d * self.unit * 0.4, 0, 1)[..., None] * np.float32(0.93)
            self.ids[d < 0] = 0

    def _forget_slivers(self) -> None:
        _, inverse, counts = np.unique(self.ids, return_inverse=True, return_counts=True)
        small = counts < _SLIVER * self.unit**2
        self.ids[small[inverse].reshape(self.ids.shape)] = 0

    def _camera(self) -> NDArray[np.uint8]:
        """Uneven light, white balance, vignette, a touch of blur, sensor noise."""
        rng = self.rng
        ramp = (self.x - 96) * self.light[0] + (self.y - 96) * self.light[1]
        dark = ((self.x - 96) ** 2 + (self.y - 96) ** 2) / 96**2
        gain = rng.uniform(0.92, 1.18) * (1 + rng.uniform(0, 0.0018) * ramp - 0.09 * dark)
        warmth = rng.normal(0, 0.025)
        rgb = self.rgb * gain[..., None] * np.array([1 + warmth, 1, 1 - warmth], np.float32)
        rgb = np.clip(rgb, 0, 1) ** np.float32(rng.uniform(0.85, 1.02))
        soft = Image.fromarray((rgb * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.55)))
        grain = rng.normal(0, rng.uniform(1.5, 4.5), (self.size, self.size, 3)).astype(np.float32)
        pixels: NDArray[np.uint8] = np.clip(np.asarray(soft, np.float32) + grain, 0, 255).astype(np.uint8)
        return pixels


def _rgb(hue: float, saturation: float, value: float) -> Field:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
