"""label_map.json: what classes are called and how they are drawn, in the order of the annotation file's categories."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mask2former_mcp.formats import json_stream
from mask2former_mcp.formats.fault import FormatError, boolean, integer, text
from mask2former_mcp.formats.records import Category


@dataclass(frozen=True, slots=True)
class Label:
    """One class. `color` is RGB, 0..255."""

    id: int
    name: str
    isthing: bool = True
    color: tuple[int, int, int] = (0, 0, 0)


def read(path: Path) -> tuple[Label, ...]:
    """The labels in file order. `color` and `isthing` may be missing (a made-up colour; a thing).

    Raises FormatError: not a list, missing key, bad value, duplicate id.
    """
    content = json_stream.whole(path)
    if not isinstance(content, list):
        raise FormatError(
            "bad_value",
            f"a list of {{id, name, color, isthing}} was expected, found {type(content).__name__}",
            file=path,
        )
    labels: list[Label] = []
    seen: set[int] = set()
    for position, entry in enumerate(content):
        label = _label(entry, position, path)
        if label.id in seen:
            raise FormatError("duplicate_id", "this class id occurs twice", file=path, id=label.id)
        seen.add(label.id)
        labels.append(label)
    return tuple(labels)


def write(path: Path, labels: Iterable[Label]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps([row(label) for label in labels], indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def row(label: Label) -> dict[str, object]:
    """The label as it stands in the file."""
    return {"id": label.id, "name": label.name, "color": list(label.color), "isthing": int(label.isthing)}


def of_categories(categories: Iterable[Category]) -> tuple[Label, ...]:
    """The label map that fits an annotation file: its categories in their order, with made-up colours."""
    return tuple(Label(c.id, c.name, c.isthing, palette(position)) for position, c in enumerate(categories))


def palette(position: int) -> tuple[int, int, int]:
    """A colour for the class at this position: bits of the position spread over the channels (the Pascal VOC map)."""
    red = green = blue = 0
    for shift in range(8):
        value = (position + 1) >> (3 * shift)
        red |= (value & 1) << (7 - shift)
        green |= (value >> 1 & 1) << (7 - shift)
        blue |= (value >> 2 & 1) << (7 - shift)
    return red, green, blue


def _label(entry: object, position: int, path: Path) -> Label:
    id_ = integer(entry, "id", path)
    assert isinstance(entry, dict)  # integer() has refused anything else
    color = entry.get("color", list(palette(position)))
    if not (isinstance(color, list) and len(color) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in color)):
        raise FormatError("bad_value", f'"color" must be three numbers 0..255, found {color!r:.60}', file=path, id=id_)
    isthing = boolean(entry, "isthing", path, id_) if "isthing" in entry else True
    return Label(id_, text(entry, "name", path, id_), isthing, (color[0], color[1], color[2]))
