"""Binary masks as COCO writes them: run lengths (plain or packed into a string) and polygons. Pure numpy.

Run lengths count down the columns (Fortran order), alternating background and foreground, starting with background.
The packed string is COCO's: differences to the run two before, 5 bits a character, least significant group first,
bit 5 marks a continuation, the top bit of the last group is the sign; characters start at 48 ('0').
Checked against pycocotools in the tests.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


class Rle(TypedDict):
    """`size` is [height, width]; `counts` a packed string or a list of run lengths."""

    size: list[int]
    counts: str | list[int]


def encode(mask: Mask) -> Rle:
    """[H, W] bool -> packed run lengths."""
    height, width = mask.shape
    return {"size": [height, width], "counts": pack(_runs(mask))}


def decode(rle: Rle) -> Mask:
    """Run lengths, packed or plain -> [H, W] bool. Raises ValueError when the runs do not fill the size."""
    height, width = _size(rle)
    counts = runs(rle)
    if (counts < 0).any() or int(counts.sum()) != height * width:
        raise ValueError(
            f"run lengths cover {int(counts.sum())} pixels, the size {height} x {width} has {height * width}"
        )
    values = np.arange(counts.size) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def area(rle: Rle) -> int:
    """Foreground pixels, without building the mask."""
    return int(runs(rle)[1::2].sum())


def bounding_box(mask: Mask) -> tuple[int, int, int, int]:
    """(x, y, width, height) of the foreground; zeros when there is none."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not columns.size:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def runs(rle: Rle) -> NDArray[np.int64]:
    """The run lengths of either form."""
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        return unpack(counts)
    if not all(isinstance(c, int) for c in counts):
        raise ValueError("run lengths must be whole numbers")
    return np.asarray(counts, dtype=np.int64)


def pack(counts: NDArray[np.int64]) -> str:
    """Run lengths -> COCO's string."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    groups: list[NDArray[np.int64]] = []
    open_ = np.ones(rest.shape, dtype=bool)
    while open_.any():
        low = rest & 31
        rest = rest >> 5
        more = np.where(low & 16, rest != -1, rest != 0)
        groups.append(np.where(open_, low + 32 * more + 48, 0))
        open_ &= more
    if not groups:
        return ""
    table = np.stack(groups, 1).reshape(-1)
    return table[table > 0].astype(np.uint8).tobytes().decode("ascii")


def unpack(packed: str | bytes) -> NDArray[np.int64]:
    """COCO's string -> run lengths. Raises ValueError for characters outside the alphabet or a cut string."""
    raw = packed.encode("ascii", "replace") if isinstance(packed, str) else packed
    values = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if not values.size:
        return np.zeros(0, dtype=np.int64)
    if (values < 0).any() or (values > 63).any() or values[-1] & 32:
        raise ValueError("not a packed run-length string")
    last = (values & 32) == 0
    first = np.concatenate([[True], last[:-1]])
    starts = np.flatnonzero(first)
    place = np.arange(values.size) - np.repeat(starts, np.diff(np.append(starts, values.size)))
    if place.max() > 11:
        raise ValueError("not a packed run-length string: a number has too many digits")
    counts = np.add.reduceat((values & 31) << (5 * place), starts)
    negative = (values[last] & 16) != 0
    counts = counts - np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def fill(polygons: Sequence[Sequence[float] | NDArray[np.float32]], height: int, width: int) -> Mask:
    """[H, W] bool: the union of polygons given as x0, y0, x1, y1, ... in pixels; a pixel is in when its centre is.

    Each polygon follows the even-odd rule. Works by marking, on every row, the pixel from which an edge changes
    inside to outside, and summing along the row. Raises ValueError for fewer than 3 points or an odd count.
    """
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
            raise ValueError("a polygon needs at least 3 points, written as x, y pairs")
        mask |= _even_odd(points.reshape(-1, 2), height, width)
    return mask


def _even_odd(points: NDArray[np.float64], height: int, width: int) -> Mask:
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    top = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    bottom = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    rows_of_edge = bottom - top
    edge = np.repeat(np.arange(len(points)), rows_of_edge)
    row = np.arange(edge.size) - np.repeat(np.cumsum(rows_of_edge) - rows_of_edge, rows_of_edge) + top[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    changes = np.zeros((height, width + 1), dtype=np.int64)
    np.add.at(changes, (row, column), 1)
    inside: Mask = np.cumsum(changes[:, :width], axis=1) % 2 == 1
    return inside


def _runs(mask: Mask) -> NDArray[np.int64]:
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    if not flat.size:
        return np.zeros(0, dtype=np.int64)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return np.concatenate([[0], lengths]) if flat[0] else lengths


def _size(rle: Rle) -> tuple[int, int]:
    size = rle["size"]
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"run lengths need a size [height, width], found {size!r}")
    return size[0], size[1]
