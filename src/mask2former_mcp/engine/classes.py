"""The classes of a network: class 1..C <-> category ids, names, colours and kinds of the data. 0 is no object."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former_mcp.formats import label_map
from mask2former_mcp.formats.label_map import Label, palette
from mask2former_mcp.formats.records import Category


@dataclass(frozen=True, slots=True)
class Entry:
    """One class. `color` is RGB 0..255."""

    category_id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Classes:
    """`entries[i]` is class i + 1; None where the data has no category for it (gaps between raw ids)."""

    entries: tuple[Entry | None, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, class_: int) -> Entry:
        """The entry of class 1..C; a nameless thing for a gap."""
        return self.entries[class_ - 1] or Entry(class_, f"class_{class_}", True, palette(class_ - 1))

    @property
    def of_category(self) -> dict[int, int]:
        """Category id -> class."""
        return {entry.category_id: i + 1 for i, entry in enumerate(self.entries) if entry is not None}

    @property
    def things(self) -> frozenset[int]:
        """Classes that are merged per instance; all others are merged per class."""
        return frozenset(i + 1 for i, entry in enumerate(self.entries) if entry is None or entry.isthing)

    @property
    def known(self) -> tuple[int, ...]:
        """Classes that the data has."""
        return tuple(i + 1 for i, entry in enumerate(self.entries) if entry is not None)

    def plain(self) -> list[dict[str, Any] | None]:
        """For a checkpoint: plain values only."""
        return [
            None if e is None else {"id": e.category_id, "name": e.name, "isthing": e.isthing, "color": list(e.color)}
            for e in self.entries
        ]


def from_plain(entries: Sequence[Mapping[str, Any] | None]) -> Classes:
    """The inverse of `Classes.plain`."""
    return Classes(
        tuple(
            None if e is None else Entry(int(e["id"]), str(e["name"]), bool(e["isthing"]), _rgb(e["color"]))
            for e in entries
        )
    )


def arrange(
    categories: Iterable[Category], labels: Sequence[Label], *, num_classes: int, contiguous_id: bool, where: str
) -> Classes:
    """The classes of categories in file order: class = position + 1 when contiguous, else the raw id.

    Names, colours and kinds come from the label map where it has the id. Raises ValueError, with the right number of
    classes, when the categories do not fit in `num_classes`; `where` names the file in it.
    """
    found = list(categories)
    label_of = {label.id: label for label in labels}
    needed = len(found) if contiguous_id else max((c.id for c in found), default=0)
    if needed > num_classes:
        meant = "categories" if contiguous_id else "as largest category id"
        raise ValueError(
            f"model.sem_seg_head.num_classes = {num_classes} is too small: {where} has {needed} {meant}."
            f" Set model.sem_seg_head.num_classes={needed}."
        )
    entries: list[Entry | None] = [None] * num_classes
    for position, category in enumerate(found):
        place = position if contiguous_id else category.id - 1
        if place < 0:
            raise ValueError(f"{where}: category id {category.id} cannot be a class; set dataset.contiguous_id=true")
        label = label_of.get(category.id)
        entries[place] = Entry(
            category.id,
            label.name if label else category.name,
            label.isthing if label else category.isthing,
            label.color if label and any(label.color) else palette(position),
        )
    return Classes(tuple(entries))


def read_labels(path: str) -> tuple[Label, ...]:
    """The label map of the spec, empty when none is given. Raises FormatError."""
    return label_map.read(Path(path)) if path else ()


def as_categories(labels: Sequence[Label]) -> tuple[Category, ...]:
    """Where no annotation file says what exists (inference, ADE), the label map does."""
    return tuple(Category(label.id, label.name, label.isthing) for label in labels)


def _rgb(values: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in values)
    return red, green, blue
