"""What COCO instance and COCO panoptic files share: categories and images."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mask2former_mcp.formats.fault import FormatError, boolean, integer, text


@dataclass(frozen=True, slots=True)
class Category:
    """One class. Its position in the file's list is its contiguous class (from 0; the network adds 1)."""

    id: int
    name: str
    isthing: bool = True


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of an annotation file. `width` and `height` are None when the file does not say."""

    id: int
    file_name: str
    width: int | None = None
    height: int | None = None


def category(entry: Any, file: Path, *, isthing_required: bool) -> Category:
    """A category; `isthing` is required where things and stuff are told apart, else a thing. Raises FormatError."""
    id_ = integer(entry, "id", file)
    isthing = boolean(entry, "isthing", file, id_) if isthing_required or "isthing" in entry else True
    name = entry.get("name")
    return Category(id_, name if isinstance(name, str) and name else f"class_{id_}", isthing)


def image(entry: Any, file: Path, *, size_required: bool) -> ImageEntry:
    """An image entry; its file name is relative and stays inside the image folder. Raises FormatError."""
    id_ = integer(entry, "id", file)
    name = relative(text(entry, "file_name", file, id_), file, id_)
    sizes: list[int | None] = []
    for key in ("width", "height"):
        value = integer(entry, key, file, id_) if size_required or entry.get(key) is not None else None
        if value is not None and value < 1:
            raise FormatError("bad_value", f'"{key}" must be at least 1, found {value}', file=file, id=id_)
        sizes.append(value)
    return ImageEntry(id_, name, sizes[0], sizes[1])


def relative(name: str, file: Path, id: int | str | None) -> str:
    """The name itself, if it cannot point outside the folder that it is relative to. Raises FormatError."""
    if ".." not in name and "\\" not in name and "\0" not in name and name[0] != "/":
        return name
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise FormatError(
            "bad_path", f"a file name must be relative and stay in its folder, found {name!r:.120}", file=file, id=id
        )
    return name
