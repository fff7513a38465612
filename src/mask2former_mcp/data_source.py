"""Rows of a bundle's data-source table: which spec key reads which file of which dataset folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSource:
    """One row of the per-action data-source table.

    `path` is the conventional name in the dataset folder ("." is the folder itself), or one per format with "*" for
    every other format. `runtime` "extracted_folder" means that an archive must be a folder when the action runs.
    `formats` are those whose reader opens the key in this action; None: the bundle does not say, so all do.
    An `exclusive` row concerns its formats alone: for any other it is passed over, even where its file exists.
    """

    key: str
    source: str
    path: str | Mapping[str, str]
    runtime: str | None = None
    formats: tuple[str, ...] | None = None
    exclusive: bool = False

    def file_name(self, dataset_format: str) -> str | None:
        """The name to look for; None where the row has none for this format."""
        if isinstance(self.path, str):
            return self.path
        return self.path.get(dataset_format, self.path.get("*"))

    def is_read(self, dataset_format: str) -> bool:
        return self.formats is None or dataset_format in self.formats


def read(action: str, key: str, entry: object, notes: list[str]) -> DataSource | None:
    """A row as data; None, with a note, for one of a form that this reader does not know."""
    path = entry.get("path") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not entry.get("source"):
        notes.append(f"data source '{key}' of '{action}' is left out: it names no source")
        return None
    rule = format_rule(path)
    names = list(rule.values()) if rule else [path]
    if not all(isinstance(name, str) and name and not _leads_out(name) for name in names):
        notes.append(f"data source '{key}' of '{action}' is left out: '{path}' is not a name inside a dataset folder")
        return None
    formats = entry.get("formats")
    return DataSource(
        key=key,
        source=str(entry["source"]),
        path=rule or str(path),
        runtime=entry.get("runtime"),
        formats=None if formats is None else tuple(formats),
        exclusive=entry.get("exclusive") is True,
    )


def format_rule(value: object) -> dict[str, str] | None:
    """A file rule by format as a mapping, {"coco_panoptic": A, "*": B}; None when the value is not such a rule.

    Read are the table's text "coco_panoptic: A; *: B", a plain mapping, and the mapping whose one value still carries
    the rest of the text ({"coco_panoptic": "A; *: B"}), as it stands in published skills.
    """
    if isinstance(value, Mapping):
        value = "; ".join(f"{name}: {path}" for name, path in value.items())
    if not isinstance(value, str) or ": " not in value:
        return None
    pairs = [part.split(": ", 1) for part in value.split(";") if part.strip()]
    if any(len(pair) != 2 for pair in pairs):
        return None
    return {name.strip(): path.strip() for name, path in pairs}


def _leads_out(name: str) -> bool:
    return name.startswith(("/", "~")) or ".." in Path(name).parts
