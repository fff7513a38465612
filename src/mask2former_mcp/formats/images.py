"""Pixels of the files people really have: EXIF rotation, palettes, grey, 16 bit, alpha, CMYK become upright RGB."""

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mask2former_mcp.formats.fault import FormatError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
# Images as well, but not read here.
UNREAD = frozenset({".gif", ".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".svg", ".psd", ".dng", ".tga"})
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112
# What Pillow raises for files that are not images, or broken ones; struct.error: a damaged EXIF block.
_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
_DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


def listing(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The image files of a folder in name order; hidden files (`._x.jpg` of some archivers) are skipped."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def read(path: Path) -> NDArray[np.uint8]:
    """[H, W, 3] uint8, upright. Alpha is dropped, 16-bit values are divided by 256.

    Raises FormatError: `missing_file`, `unreadable` (not an image, truncated, too large).
    """
    with _opened(path) as image:
        try:
            ImageOps.exif_transpose(image, in_place=True)
            return np.array(_rgb(image, path))
        except _UNREADABLE as cause:
            raise _unreadable(path, cause) from cause


def size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, from the header only."""
    with _opened(path) as image:
        if image.format == "PNG" and "exif" not in image.info:
            return image.size  # getexif() would decode all of it, in search of EXIF behind the pixels
        return _upright(image.size, image)


def stored_size(path: Path) -> tuple[int, int]:
    """(width, height) as the pixels lie in the file, whatever EXIF says of them; from the header only."""
    with _opened(path) as image:
        return image.size


def probe(path: Path, content: bytes | None = None) -> tuple[int, int]:
    """(width, height) of the upright image after decoding all of it, so that a truncated file is found.

    JPEG is decoded at an eighth of its size: every byte is read at a fraction of the cost.
    """
    with _opened(path, content) as image:
        stored = image.size
        try:
            if image.format == "JPEG":
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
        except _UNREADABLE as cause:
            raise _unreadable(path, cause) from cause
        return _upright(stored, image)


def _opened(path: Path, content: bytes | None = None) -> Image.Image:
    try:
        return Image.open(path if content is None else io.BytesIO(content))
    except FileNotFoundError as cause:
        raise FormatError("missing_file", "the image does not exist", file=path) from cause
    except _UNREADABLE as cause:
        raise _unreadable(path, cause) from cause


def _unreadable(path: Path, cause: Exception) -> FormatError:
    return FormatError("unreadable", f"not a readable image: {cause}", file=path)


def _upright(size: tuple[int, int], image: Image.Image) -> tuple[int, int]:
    return size[::-1] if image.getexif().get(_ORIENTATION) in _TURNED else size


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in _DEEP:
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise FormatError(
            "unreadable", "floating-point pixels have no defined range; save it as 8 or 16 bit", file=path
        )
    if image.mode == "P":  # through RGBA: a palette may carry transparency as bytes, which RGB alone warns about
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
