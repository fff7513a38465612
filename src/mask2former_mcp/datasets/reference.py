"""A dataset reference: a local folder or an s3:// prefix, and what is found in it under the conventional names."""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mask2former_mcp.errors import DatasetError, InvalidRequest, NotAvailable
from mask2former_mcp.formats import images
from mask2former_mcp.formats.names import ALSO_CALLED, IMAGES
from mask2former_mcp.staging import archives
from mask2former_mcp.staging.uri import Uri

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
KINDS = ", ".join(sorted(images.SUFFIXES))  # of image files that are read
_RULE = "A dataset is a folder: a local path such as /data/shop, or s3://bucket/prefix."


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """`uri` is an absolute local path or `s3://bucket/prefix`, without a trailing slash.

    `mirror` is the local folder that stands for an s3:// prefix; `inside` is the path below it (`train`).
    """

    uri: str
    kind: Literal["local", "s3"]
    mirror: Path | None = None
    inside: str = ""

    @classmethod
    def parse(cls, text: str) -> "DatasetRef":
        """Raises InvalidRequest for an empty text, another scheme, or a malformed bucket. Looks at no disk."""
        text = text.strip()
        if not text or "\0" in text:
            raise InvalidRequest("the dataset is empty", fix=_RULE)
        scheme = _SCHEME.match(text)
        if scheme is None:
            return cls(os.path.abspath(os.path.expanduser(text)), "local")
        if scheme[1] != "s3":
            raise InvalidRequest(f"dataset {text!r}: the scheme {scheme[1]}:// is not supported", fix=_RULE)
        try:
            return cls(str(Uri.parse(text)), "s3")
        except ValueError as cause:
            raise InvalidRequest(f"dataset {text[:200]!r}: {cause}", fix=_RULE) from cause

    def outlined(self, home: Path, deadline_s: float) -> "DatasetRef":
        """Itself, or for s3 the reference with its mirror in the cache: annotations readable, the rest by name.

        NotReady past the deadline; what has arrived is kept.
        """
        if self.kind == "local" or self.mirror is not None:
            return self
        # Imported here: boto3 takes a quarter of a second to import, and only data in S3 needs it.
        from mask2former_mcp.staging import mirror

        return replace(self, mirror=mirror.outline(Uri.parse(self.uri), home, deadline_s=deadline_s))

    @property
    def path(self) -> Path:
        """The local folder, or the mirror. Raises NotAvailable for s3 that has none."""
        if self.kind == "local":
            return Path(self.uri)
        if self.mirror is None:
            raise NotAvailable(f"{self.uri} is not on this disk", fix="Copy it to a local folder and name that.")
        return self.mirror / self.inside

    @property
    def is_image(self) -> bool:
        """Whether it is a file that looks like an image."""
        path = Path(self.uri)
        return self.kind == "local" and path.suffix.lower() in images.SUFFIXES and os.path.isfile(path)

    def folder(self) -> Path:
        """The local folder, which exists. Raises DatasetError naming what is there instead."""
        path = self.path
        try:
            if path.is_dir():
                return path
            if path.exists():
                raise _a_file(path)
            parent = next((p for p in path.parents if p.is_dir()), Path("/"))
        except OSError as cause:
            raise DatasetError(f"dataset {str(path)[:200]} cannot be read: {cause.strerror}", fix=_RULE) from cause
        raise DatasetError(
            f"dataset {path} does not exist", fix=f"{_RULE} In {parent} there is: {contents(parent) or 'nothing'}."
        )

    def child(self, name: str) -> "DatasetRef":
        inside = "" if self.kind == "local" else f"{self.inside}/{name}".lstrip("/")
        return DatasetRef(f"{self.uri}/{name}", self.kind, self.mirror, inside)

    def beside(self, name: str) -> "DatasetRef":
        """The folder of that name in the same parent; of an s3 prefix only within what is mirrored."""
        inside = "/".join((*self.inside.split("/")[:-1], name)) if self.inside else ""
        return DatasetRef(f"{self.uri.rpartition('/')[0]}/{name}", self.kind, self.mirror, inside)


def _a_file(path: Path) -> DatasetError:
    if archives.is_archive(path.name):
        how = "unzip" if path.suffix.lower() == ".zip" else "tar -xf"
        return DatasetError(
            f"dataset {path} is an archive of a whole dataset",
            fix=f"Unpack it first ({how} {path.name}) and name the folder. Inside a dataset folder, images.tar.gz may "
            "stay packed.",
        )
    if path.suffix.lower() in images.SUFFIXES:
        return DatasetError(
            f"dataset {path} is one image", fix=f"{_RULE} Only inference takes a single image, as inference_dataset."
        )
    if path.suffix.lower() in images.UNREAD:
        return DatasetError(
            f"dataset {path} is an image of a kind that is not read", fix=f"Convert it to one of {KINDS}."
        )
    return DatasetError(f"dataset {path} is a file", fix=f"{_RULE} inference_dataset may be one image: {KINDS}.")


@dataclass(frozen=True, slots=True)
class Place:
    """Something found: a file, a folder, or an archive that stands for a folder."""

    path: Path
    kind: Literal["file", "folder", "archive"]


def find(ref: DatasetRef, name: str, *, expects: str | None = None) -> Place | None:
    """What answers to a conventional name in the reference's folder, or None.

    An archive name (`images.tar.gz`) is answered by the extracted folder (`images/`) first, then by an archive of any
    supported kind with that stem. `expects` names a file that belongs directly into the folder: a folder whose only
    content is another folder is entered until the file is there. Any other name is answered by the file, or by what
    exporters call it.
    """
    folder = ref.folder()
    if not archives.is_archive(name):
        named = (folder / candidate for candidate in (name, *ALSO_CALLED.get(name, ())))
        return next((Place(file, "file") for file in named if file.is_file()), None)
    stem = archives.stem(name)
    extracted = folder / stem
    candidates = (folder / candidate for candidate in (name, *(stem + suffix for suffix in archives.SUFFIXES)))
    archive = next((path for path in candidates if path.is_file()), None)
    if extracted.is_dir() and (archive is None or ref.kind == "s3" or any(extracted.iterdir())):
        return Place(_entered(extracted, expects), "folder")
    return None if archive is None else Place(archive, "archive")


def find_images(ref: DatasetRef, *, expects: str | None = None) -> Place | None:
    """`images/` or its archive; else the folder itself, where image files lie directly in it."""
    place = find(ref, IMAGES, expects=expects)
    return Place(ref.folder(), "folder") if place is None and holds_images(ref.folder()) else place


def holds_images(folder: Path) -> bool:
    """True when image files lie directly in the folder."""
    return any(p.suffix.lower() in images.SUFFIXES and not p.name.startswith(".") for p in folder.iterdir())


def unread_images(folder: Path) -> str:
    """What to say of image files in the folder whose kind is not read; empty where there is none."""
    suffixes = (p.suffix.lower() for p in folder.iterdir() if not p.name.startswith("."))
    found = Counter(suffix for suffix in suffixes if suffix in images.UNREAD)
    if not found:
        return ""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.items()))
    return f"{found.total()} image file(s) are of a kind that is not read ({kinds}): convert them to one of {KINDS}"


def contents(folder: Path, limit: int = 12) -> str:
    """The first names in a folder, for a message; printable characters only."""
    try:
        found = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as cause:
        return f"(unreadable: {cause.strerror})"
    shown = ", ".join("".join(c if c.isprintable() else "?" for c in name[:60]) for name in found[:limit])
    return shown + (f" and {len(found) - limit} more" if len(found) > limit else "")


def _entered(folder: Path, expects: str | None) -> Path:
    current = folder
    while expects is None or not (current / expects).exists():
        inside = [p for p in current.iterdir() if not p.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir():
            return current if expects is None else folder
        current = inside[0]
    return current
