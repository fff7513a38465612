"""ADE: a JSONL file of image and mask pairs; a mask's pixels are class ids. 0 and 255 are void."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask2former_mcp.formats import records
from mask2former_mcp.formats.fault import FormatError, text

VOID = frozenset({0, 255})


@dataclass(frozen=True, slots=True)
class Pair:
    """One line. Paths are relative to the root folder; `line` counts from 1."""

    line: int
    image: str
    mask: str


@dataclass(frozen=True, slots=True)
class Record:
    image: Path
    mask: Path


def read(annot_file: Path, root_dir: Path) -> tuple[Record, ...]:
    """All pairs in file order; files are not opened.

    Raises FormatError at the first bad line, or when there is none.
    """
    found = tuple(
        Record(root_dir / p.image, root_dir / p.mask)
        for p in (pair(n, raw, annot_file) for n, raw in lines(annot_file))
    )
    if not found:
        raise FormatError("missing_key", 'no line {"img": ..., "segm": ...} was found', file=annot_file)
    return found


def lines(annot_file: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of each line that is not blank. Raises FormatError: missing, unreadable, not UTF-8."""
    try:
        with annot_file.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except FileNotFoundError as cause:
        raise FormatError("missing_file", "the file does not exist", file=annot_file) from cause
    except UnicodeDecodeError as cause:
        raise FormatError("not_json", f"not UTF-8 text: {cause.reason}", file=annot_file) from cause
    except OSError as cause:
        raise FormatError("unreadable", f"cannot be opened: {cause.strerror}", file=annot_file) from cause


def pair(number: int, line: str, file: Path) -> Pair:
    """One line, parsed. Raises FormatError: not JSON, missing key, a path that leaves the root folder."""
    where = f"line {number}"
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as cause:
        raise FormatError("not_json", f"not valid JSON: {cause.msg}", file=file, id=where) from cause
    image, mask = (records.relative(text(entry, key, file, where), file, where) for key in ("img", "segm"))
    return Pair(number, image, mask)


def read_classes(path: Path) -> NDArray[np.int32]:
    """[H, W] int32 class ids of a grey or palette mask.

    Raises FormatError: `missing_file`, `unreadable`, `bad_value`.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1", "I", "I;16"):
                rule = f"a class mask must have one channel, this one is {image.mode}"
                raise FormatError("bad_value", rule, file=path)
            return np.array(image).astype(np.int32)
    except FileNotFoundError as cause:
        raise FormatError("missing_file", "the mask does not exist", file=path) from cause
    except FormatError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise FormatError("unreadable", f"not a readable image: {cause}", file=path) from cause
