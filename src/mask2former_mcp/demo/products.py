"""The products of the demo scenes: six shapes as signed distances, each with its own surface.

Lengths are in pixels of a 192-pixel scene. A shape function maps local coordinates (x along the product, y across)
to a signed distance, negative inside; a surface function maps the same coordinates to RGB 0..1 and a gloss 0..1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # [h, w] or [h, w, 3], floating
Shape = Callable[[Field, Field, "Build"], Field]
Surface = Callable[[Field, Field, Field, "Build"], Field]


@dataclass(frozen=True, slots=True)
class Build:
    """One product's own numbers: half length, half width, base and second colour, a number for details, fine noise."""

    a: float
    b: float
    color: Field  # [3]
    accent: Field  # [3]
    detail: float  # 0..1
    noise: Callable[[float], Field]  # grain size in pixels -> [h, w] in -1..1


@dataclass(frozen=True, slots=True)
class Product:
    """A class of things. `hues`: typical hue, saturation, value; `bevel`: pixels over which the edge is round."""

    name: str
    shape: Shape
    surface: Surface
    half_length: tuple[float, float]
    aspect: tuple[float, float]
    hues: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    bevel: float
    height: float  # how far its shadow falls, pixels
    gloss: float


def _box_distance(x: Field, y: Field, a: float, b: float, radius: float) -> Field:
    dx, dy = np.abs(x) - (a - radius), np.abs(y) - (b - radius)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    distance: Field = outside + np.minimum(np.maximum(dx, dy), 0) - radius
    return distance


def _mix(base: Field, other: Field, weight: Field) -> Field:
    blended: Field = base + (other - base) * np.clip(weight, 0, 1)[..., None]
    return blended


def _flat(build: Build, like: Field) -> Field:
    return np.broadcast_to(build.color, (*like.shape, 3)).astype(np.float32)


def _step(distance: Field) -> Field:
    """1 inside, 0 outside, soft over one pixel."""
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def _carton(x: Field, y: Field, k: Build) -> Field:
    return _box_distance(x, y, k.a, k.b, 1.5)


def _carton_surface(x: Field, y: Field, d: Field, k: Build) -> Field:
    rgb = _flat(k, x) * (1 + 0.05 * k.noise(1.2) + 0.05 * np.sin(y * 2.4))[..., None]
    tape = _step(np.abs(y) - k.b * 0.17)
    rgb = _mix(rgb, k.color * 1.28 + 0.06, tape * 0.75)
    rgb = rgb * (1 - 0.45 * _step(np.abs(y) - 0.45) * (1 - tape))[..., None]
    label = _step(_box_distance(x - k.a * 0.45, y - k.b * 0.52, k.a * 0.36, k.b * 0.26, 0.5))
    lines = 0.5 + 0.5 * np.sign(np.sin(x * 2.3 + k.detail * 9))
    return _mix(rgb, np.stack([0.93 - 0.6 * lines * (np.abs(y - k.b * 0.52) < k.b * 0.15)] * 3, -1), label)


def _bottle(x: Field, y: Field, k: Build) -> Field:
    body = _box_distance(x + k.a * 0.22, y, k.a * 0.78, k.b, k.b * 0.55)
    neck = _box_distance(x - k.a * 0.7, y, k.a * 0.3, k.b * 0.4, 1.0)
    blend = 5.0  # a smooth union draws the bottle's shoulder
    h = np.clip(0.5 + 0.5 * (neck - body) / blend, 0, 1)
    distance: Field = neck + (body - neck) * h - blend * h * (1 - h)
    return distance


def _bottle_surface(x: Field, y: Field, d: Field, k: Build) -> Field:
    rgb = _flat(k, x) * (0.8 + 0.45 * np.exp(-(((y + k.b * 0.1) / (k.b * 0.6)) ** 2)))[..., None]
    rgb = _mix(rgb, k.accent, _step(_box_distance(x + k.a * 0.28, y, k.a * 0.27, k.b * 2, 0.1)) * 0.92)
    rgb = _mix(rgb, np.ones(3, np.float32), _step(np.abs(x + k.a * 0.28) - k.a * 0.05) * 0.8)
    return _mix(rgb, k.accent * 0.75, _step(k.a * 0.84 - x))


def _can(x: Field, y: Field, k: Build) -> Field:
    distance: Field = np.hypot(x, y) - k.a
    return distance


def _can_surface(x: Field, y: Field, d: Field, k: Build) -> Field:
    r = np.hypot(x, y)
    turn = np.arctan2(y, x)
    metal = 0.68 + 0.13 * np.cos(2 * turn + k.detail * 6) + 0.03 * k.noise(1.0)
    rgb = _mix(_flat(k, x), np.stack([metal, metal, metal * 1.03], -1), _step(r - k.a * 0.66) * 0.92)
    rgb = rgb * (1 - 0.4 * np.exp(-(((r - k.a * 0.66) / 1.1) ** 2)))[..., None]
    rgb = rgb * (1 - 0.25 * np.exp(-(((r - k.a * 0.5) / 0.9) ** 2)))[..., None]
    tab = np.abs(_box_distance(x - k.a * 0.16, y, k.a * 0.24, k.a * 0.12, k.a * 0.12)) - 0.7
    return _mix(rgb, np.full(3, 0.36, np.float32), _step(tab))


def _pouch(x: Field, y: Field, k: Build) -> Field:
    pinch = 1 - 0.22 * (1 - (x / k.a) ** 2).clip(-1, 1)  # narrower in the middle, wide at the crimped ends
    crimp = 0.7 * np.sin(y * 1.7) * (np.abs(x) > k.a * 0.8)
    return _box_distance(x + crimp, y / pinch.clip(0.6, 1.2), k.a, k.b, 2.0)


def _pouch_surface(x: Field, y: Field, d: Field, k: Build) -> Field:
    ends = _step(k.a * 0.8 - np.abs(x))
    rgb = _flat(k, x) * (1 + 0.22 * k.noise(5.0) + 0.1 * np.cos(x / k.a * 1.5))[..., None]
    rgb = rgb * (1 - ends * (0.18 + 0.12 * np.sin(x * 3.1)))[..., None]
    disc = _step(np.hypot(x * 0.9, y) - k.b * 0.52)
    rgb = _mix(rgb, k.accent, disc * 0.95)
    return _mix(rgb, np.ones(3, np.float32), _step(np.abs(np.hypot(x * 0.9, y) - k.b * 0.36) - 0.9) * 0.9)


def _fruit(x: Field, y: Field, k: Build) -> Field:
    r, turn = np.hypot(x / k.a, y / k.b), np.arctan2(y, x)
    wobble = 1 + 0.03 * np.sin(3 * turn + k.detail * 6) + 0.05 * np.exp(-((np.abs(turn) / 0.35) ** 2))
    distance: Field = (r - wobble) * min(k.a, k.b)
    return distance


def _fruit_surface(x: Field, y: Field, d: Field, k: Build) -> Field:
    rgb = _flat(k, x) * (1 + 0.09 * k.noise(1.0) + 0.07 * k.noise(7.0))[..., None]
    stalk = np.hypot(x - k.a * 0.3, y + k.b * 0.1)
    rgb = _mix(rgb, np.array([0.25, 0.3, 0.1], np.float32), _step(stalk - 1.7))
    return rgb * (1 - 0.22 * np.exp(-((stalk / 4.2) ** 2)))[..., None]


def _gear(x: Field, y: Field, k: Build) -> Field:
    r, turn = np.hypot(x, y), np.arctan2(y, x)
    teeth = np.tanh(3.5 * np.cos((8 + int(k.detail * 3)) * turn)) * k.a * 0.085
    ring: Field = np.maximum(r - (k.a * 0.9 + teeth), k.a * 0.3 - r)  # the hole shows what lies below
    return ring


def _gear_surface(x: Field, y: Field, d: Field, k: Build) -> Field:
    r, turn = np.hypot(x, y), np.arctan2(y, x)
    rgb = _flat(k, x) * (1 + 0.03 * k.noise(1.0))[..., None]
    groove = np.exp(-(((r - k.a * 0.72) / 1.2) ** 2)) + np.exp(-(((r - k.a * 0.44) / 1.2) ** 2))
    spokes = _step((np.abs(np.sin(2.5 * turn)) - 0.35) * r * 0.4) * (r > k.a * 0.46) * (r < k.a * 0.7)
    return rgb * (1 - 0.35 * groove - 0.3 * spokes)[..., None]


PRODUCTS: tuple[Product, ...] = (
    Product(
        "carton",
        _carton,
        _carton_surface,
        (24, 33),
        (0.62, 0.9),
        ((0.065, 0.1), (0.42, 0.58), (0.6, 0.78)),
        2.0,
        8,
        0.05,
    ),
    Product(
        "bottle",
        _bottle,
        _bottle_surface,
        (35, 44),
        (0.35, 0.42),
        ((0.33, 0.42), (0.6, 0.9), (0.38, 0.62)),
        9.0,
        6,
        0.9,
    ),
    Product("can", _can, _can_surface, (19, 25), (1.0, 1.0), ((0.975, 1.015), (0.8, 0.95), (0.66, 0.86)), 2.5, 10, 0.6),
    Product(
        "pouch", _pouch, _pouch_surface, (27, 35), (0.64, 0.8), ((0.57, 0.64), (0.65, 0.9), (0.62, 0.88)), 10.0, 4, 0.55
    ),
    Product(
        "lemon",
        _fruit,
        _fruit_surface,
        (19, 26),
        (0.78, 0.92),
        ((0.13, 0.16), (0.78, 0.95), (0.85, 0.98)),
        18.0,
        6,
        0.6,
    ),
    Product("gear", _gear, _gear_surface, (24, 30), (1.0, 1.0), ((0.8, 0.88), (0.5, 0.75), (0.6, 0.82)), 2.5, 4, 0.3),
)
