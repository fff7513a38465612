"""A bundle's data-source rows and the folders they speak of -> spec values, and what must be extracted first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mask2former_mcp.data_source import DataSource
from mask2former_mcp.datasets.layout import first_names, inside_part, missing, no_images
from mask2former_mcp.datasets.reference import DatasetRef, Place, find, find_images
from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats.names import ANNOTATIONS, IMAGES, LABEL_MAPS, MASKS
from mask2former_mcp.staging import archives

_HERE = "."  # the row's path: the dataset folder itself
NOT_THERE = "not in"  # begins the reason for a file that is neither there nor read
_PICTURES = "{job_dir}/derived/pictures"


@dataclass(frozen=True, slots=True)
class Resolved:
    """`values`: spec key -> absolute path, s3 URI, or a `{home}` placeholder.

    `staging`: {kind, source, target, keys, options} for each archive, label map to write, and image to copy.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    staging: Sequence[Mapping[str, Any]] = ()
    notes: tuple[str, ...] = ()


def resolve(rows: Sequence[DataSource], folders: Mapping[str, DatasetRef], format: str) -> Resolved:
    """One value for each row.

    A row that the format reads must find its file: DatasetError names the file, the folder and what is there. Other
    rows are built when the file exists and left out, with a note, when not. A label map that is missing is written by
    the job, where the annotations hold the classes. An archive becomes a folder in the cache: its value is a
    placeholder and `staging` says what to extract. What lies in S3 is a path in its mirror, and `staging` says, first,
    what to fetch of it.
    """
    work = _Resolution(folders, format)
    for row in rows:
        work.row(row)
    return Resolved(work.values, (*work.fetches.values(), *work.staging.values()), tuple(work.notes()))


class _Resolution:
    def __init__(self, folders: Mapping[str, DatasetRef], format: str) -> None:
        self.folders, self.format = folders, format
        self.values: dict[str, str] = {}
        self.staging: dict[str, dict[str, Any]] = {}  # target -> item
        self.fetches: dict[str, dict[str, Any]] = {}  # mirror -> item
        self.left_out: dict[str, list[str]] = {}  # reason -> keys
        self.written: list[str] = []  # notes on files that the job makes
        self.names: dict[str, tuple[str | None, str | None]] = {}  # folder -> first image and mask

    def row(self, row: DataSource) -> None:
        read = row.is_read(self.format)
        name = row.file_name(self.format)
        if name is None or (row.exclusive and not read):
            return
        ref = self.folders.get(row.source)
        if ref is None:
            self._leave_out(f"no {row.source} was named", row.key)
        elif name == _HERE:
            self.values[row.key] = self._root(row.key, ref)
            self._fetch(row.key, ref, "")
        else:
            self._local(row, ref, name, read)

    def notes(self) -> list[str]:
        return [*self.written, *(f"left out, {reason}: {', '.join(keys)}" for reason, keys in self.left_out.items())]

    def _local(self, row: DataSource, ref: DatasetRef, name: str, read: bool) -> None:
        if row.source == "inference_dataset" and name == IMAGES and ref.is_image:
            self.values[row.key] = _PICTURES
            self._stage("copy", ref.path, _PICTURES, row.key)
            return
        expects = self._expected(ref, name)
        place = find_images(ref, expects=expects) if name == IMAGES else find(ref, name, expects=expects)
        if place is not None and place.kind == "archive" and not read and self.format == "ade":
            self._leave_out(f"ADE reads {place.path.name} of {ref.uri} through its root folder", row.key)
        elif place is not None and place.kind == "archive" and not read and ref.mirror is not None:
            self.values[row.key] = _content(place)  # named, like a folder in S3 that nobody reads: not fetched
        elif place is not None:
            self.values[row.key] = self._value(row.key, place, expects)
            if read or place.kind == "file":
                self._fetch(row.key, ref, _below(place, ref))
        elif read and row.source == "inference_dataset" and name == IMAGES:
            raise no_images(ref)
        elif read and name == LABEL_MAPS[self.format] and (annotations := self._categories_of(ref)) is not None:
            self._write_label_map(row.key, ref, name, annotations)
        elif read:
            raise missing(name, ref, self.format)
        else:
            self._leave_out(f"{NOT_THERE} {ref.uri}, and {self.format} does not read it here", row.key)

    def _categories_of(self, ref: DatasetRef) -> Place | None:
        """The annotation file, where it holds the classes' names (ADE's does not)."""
        return None if self.format == "ade" else find(ref, ANNOTATIONS[self.format])

    def _write_label_map(self, key: str, ref: DatasetRef, name: str, annotations: Place) -> None:
        self._fetch(key, ref, _below(annotations, ref))
        self.values[key] = f"{{job_dir}}/derived/{name}"
        options = {"format": self.format, "dataset": ref.uri}
        self._stage("label_map", annotations.path, self.values[key], key, options)
        self.written.append(
            f"{ref.uri} has no {name}: it is written in the job's folder from the categories of {annotations.path.name}"
        )

    def _stage(
        self, kind: str, source: Path, target: str, key: str, options: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        item = self.staging.setdefault(
            target,
            {"kind": kind, "source": str(source), "target": target, "keys": (), "options": dict(options or {})},
        )
        item["keys"] = (*item["keys"], key)
        return item

    def _fetch(self, key: str, ref: DatasetRef, part: str) -> None:
        """Of what lies in S3: this part of the folder is to be there when the job starts."""
        if ref.mirror is None:
            return
        uri = ref.uri.removesuffix(f"/{ref.inside}") if ref.inside else ref.uri
        item = self.fetches.setdefault(
            str(ref.mirror),
            {"kind": "fetch", "source": uri, "target": str(ref.mirror), "keys": (),
             "options": {"parts": (), "state": ref.mirror.name}},
        )  # fmt: skip
        item["keys"] = (*item["keys"], key)
        part = "/".join(filter(None, (ref.inside, part))) if part or not ref.inside else f"{ref.inside}/"
        item["options"] = {**item["options"], "parts": tuple(dict.fromkeys((*item["options"]["parts"], part)))}

    def _value(self, key: str, place: Place, expects: str | None) -> str:
        if place.kind != "archive":
            return str(place.path)
        return self._extract(key, place.path, _content(place), expects)

    def _extract(self, key: str, archive: Path, target: str, expects: str | None) -> str:
        item = self._stage("extract", archive, target, key)
        if expects is not None:
            item["options"] = {"expects": expects}
        return target

    def _root(self, key: str, ref: DatasetRef) -> str:
        """ADE's root: the folder itself, or a folder in the cache where its archives are laid side by side."""
        parts = {stem: find(ref, f"{stem}.tar.gz") for stem in ("images", "masks")}
        packed = {stem: part.path for stem, part in parts.items() if part is not None and part.kind == "archive"}
        if not packed:
            return str(ref.folder())
        loose = [f"{stem}/" for stem, part in parts.items() if part is not None and part.kind == "folder"]
        if loose:
            raise DatasetError(
                f"{ref.uri} holds {loose[0]} as a folder and {next(iter(packed.values())).name} as an archive",
                fix="ADE paths share one root: extract both, or pack both.",
            )
        together = archives.together(list(packed.values()))
        root = f"{{home}}/cache/ade/{together}"
        for stem, archive in packed.items():
            name = self._first(ref)[0 if stem == "images" else 1]
            self._extract(key, archive, f"{root}/{stem}", inside_part(name, stem))
        return root

    def _expected(self, ref: DatasetRef, name: str) -> str | None:
        """A file that the annotations promise directly below the folder of this name."""
        if self.format == "ade" or not archives.is_archive(name):
            return None
        image, mask = self._first(ref)
        return image if name == IMAGES else mask if name == MASKS.get(self.format) else None

    def _first(self, ref: DatasetRef) -> tuple[str | None, str | None]:
        if ref.uri not in self.names:
            annotations = find(ref, ANNOTATIONS[self.format])
            found = (None, None) if annotations is None else first_names(annotations.path, self.format)
            self.names[ref.uri] = found
        return self.names[ref.uri]

    def _leave_out(self, reason: str, key: str) -> None:
        self.left_out.setdefault(reason, []).append(key)


def _content(archive: Place) -> str:
    """Where an archive's content will lie."""
    return "{home}/" + archives.cache_place(archive.path)


def _below(place: Place, ref: DatasetRef) -> str:
    """A found place as a part of its dataset folder; a folder ends with a slash, the whole is empty."""
    name = place.path.relative_to(ref.path).as_posix()
    return "" if name == "." else f"{name}/" if place.kind == "folder" else name
