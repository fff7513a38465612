"""Reads a large JSON object piece by piece, so that an annotation file of any size needs only a buffer.

COCO-like files are one object whose big values are arrays (`images`, `annotations`). `entries` yields the elements of
such arrays one at a time and every other value whole. Standard library only: the C scanner behind
`JSONDecoder.raw_decode` does the work, on a window that grows only when an element is cut by its end.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mask2former_mcp.formats.fault import FormatError

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER_REST = re.compile(r"[0-9.eE+-]*")
_CHUNK = 1 << 20
_DECODER = json.JSONDecoder()


class _Window:
    """A sliding piece of the file. `position` is the next character that nobody has read."""

    def __init__(self, file: TextIO, path: Path, progress: Callable[[int], None] | None) -> None:
        self._file, self._path, self._progress = file, path, progress
        self.text, self.position, self.end = "", 0, False
        self._consumed = 0  # characters dropped before `text`

    def grow(self) -> bool:
        """Reads on; False at the end of the file. Doubles with the window so that one huge value stays linear."""
        try:
            piece = self._file.read(max(_CHUNK, len(self.text) - self.position))
        except UnicodeDecodeError as cause:
            raise FormatError("not_json", f"not UTF-8 text: {cause.reason}", file=self._path) from cause
        if not piece:
            self.end = True
            return False
        self._consumed += self.position
        self.text = self.text[self.position :] + piece
        self.position = 0
        if self._progress:
            self._progress(self._consumed + len(self.text))
        return True

    def peek(self) -> str:
        """The next character that is not space, without taking it; '' at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.grow():
                return ""

    def take(self, expected: str) -> None:
        found = self.peek()
        if found != expected:
            raise self.fault(f"{expected!r} was expected, found {found!r}" if found else f"it ends before {expected!r}")
        self.position += 1

    def value(self) -> Any:
        """The next whole value."""
        self.peek()
        while True:
            try:
                value, stop = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as cause:
                if self.end or not self.grow():
                    raise self.fault(cause.msg) from cause
                continue
            except RecursionError as cause:
                raise self.fault("nested too deep") from cause
            # A number at the window's end may go on behind it ("1" of "12", "0" of "0.5").
            if not self.end and _NUMBER_REST.fullmatch(self.text, stop) and self.grow():
                continue
            self.position = stop
            return value

    def fault(self, reason: str) -> FormatError:
        return FormatError(
            "not_json", f"not valid JSON near character {self._consumed + self.position}: {reason}", file=self._path
        )


def entries(path: Path, *, progress: Callable[[int], None] | None = None) -> Iterator[tuple[str, Any]]:
    """(key, element) for each element of each top-level array, (key, value) for every other top-level value.

    An empty array yields nothing. `progress` receives the characters read so far, about once a megabyte.
    Raises FormatError: `missing_file`, `unreadable`, `not_json`, `bad_value` (a list).
    """
    try:
        file = path.open(encoding="utf-8-sig")
    except FileNotFoundError as cause:
        raise FormatError("missing_file", "the file does not exist", file=path) from cause
    except OSError as cause:
        raise FormatError("unreadable", f"cannot be opened: {cause.strerror}", file=path) from cause
    with file:
        window = _Window(file, path, progress)
        if window.peek() == "[":
            raise FormatError(
                "bad_value",
                "this is not a COCO file: it holds a list, and an object with images, annotations and categories was "
                "expected",
                file=path,
            )
        window.take("{")
        if window.peek() == "}":
            return
        while True:
            key = window.value()
            if not isinstance(key, str):
                raise window.fault("a key must be a string")
            window.take(":")
            if window.peek() == "[":
                for element in _elements(window):
                    yield key, element
            else:
                yield key, window.value()
            if window.peek() != ",":
                break
            window.take(",")
        window.take("}")
        if window.peek():
            raise window.fault("text after the end of the object")


def _elements(window: _Window) -> Iterator[Any]:
    window.take("[")
    if window.peek() == "]":
        window.take("]")
        return
    while True:
        yield window.value()
        if window.peek() != ",":
            break
        window.take(",")
    window.take("]")


def whole(path: Path) -> Any:
    """A small JSON file, parsed whole. Raises FormatError like `entries`."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as cause:
        raise FormatError("missing_file", "the file does not exist", file=path) from cause
    except OSError as cause:
        raise FormatError("unreadable", f"cannot be opened: {cause.strerror}", file=path) from cause
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as cause:
        raise FormatError("not_json", f"not valid JSON: {cause}", file=path) from cause
