"""Label maps as PNG files, written fast: a few values in large areas, so that most rows equal the row above.

Every row is stored as its difference to the one above (filter 2), which leaves long runs of zeros for zlib. Pillow
tries five filters on each row: for a panoptic map four times the work, and a larger file. zlib-ng makes zlib's bytes in
a fraction of its time.
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _UP = 0, 2, 2


def write(path: Path, values: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """[H, W] as a grey PNG of 8 or 16 bits, [H, W, 3] uint8 as RGB."""
    height, width = values.shape[:2]
    stored = values.astype(values.dtype.newbyteorder(">"), order="C", copy=False)
    rows = stored.view(np.uint8).reshape(height, -1)
    lines = np.empty((height, 1 + rows.shape[1]), dtype=np.uint8)
    lines[:, 0] = _UP
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    kind = _RGB if values.ndim == 3 else _GREY
    header = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, kind, 0, 0, 0)
    runs = zlib_ng.compressobj(1, strategy=zlib_ng.Z_RLE)
    packed = runs.compress(lines.data) + runs.flush()
    path.write_bytes(_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b""))


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = zlib_ng.crc32(content, zlib_ng.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checked)
