"""What lies below an S3 prefix now, and the digest that names this state."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mask2former_mcp.errors import DatasetError, NotReady
from mask2former_mcp.staging import s3
from mask2former_mcp.staging.s3 import Object
from mask2former_mcp.staging.uri import Uri, is_plain

_READ = (".json", ".jsonl")
_SIDECAR_LIMIT = 2_000_000  # bytes of an object that is read beside a named one


@dataclass(frozen=True, slots=True)
class State:
    """What lies below a prefix now, by its path below it; of a mirror of named objects, those."""

    uri: Uri
    objects: dict[str, Object]
    only: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        text = "\n".join(f"{name}\0{o.etag}\0{o.size}" for name, o in sorted(self.objects.items()))
        return hashlib.sha256(f"{self.uri}\n{text}".encode()).hexdigest()[:24]

    def is_read(self, name: str) -> bool:
        """Whether planning reads it: annotations, and the small files beside a named object."""
        if self.only:
            return name != self.only[0] and self.objects[name].size <= _SIDECAR_LIMIT
        return name.endswith(_READ)


def read(uri: Uri, *, only: Sequence[str] = (), deadline: float | None = None) -> State:
    """Lists the prefix, or asks for the named objects: the first one must be there, others may.

    NotFound when a named object is missing; DatasetError when the prefix is empty or a key cannot be a file name here.
    """
    return _named(uri, tuple(only)) if only else _listed(uri, deadline)


def _named(uri: Uri, names: tuple[str, ...]) -> State:
    objects = {names[0]: s3.look(uri.child(names[0]))}
    beside = {name: s3.find(uri.child(name)) for name in names[1:]}
    return State(uri, objects | {name: found for name, found in beside.items() if found is not None}, names)


def _listed(uri: Uri, deadline: float | None) -> State:
    objects: dict[str, Object] = {}
    start = len(uri.key) + 1 if uri.key else 0
    for entry in s3.listing(uri):
        name = entry.uri.key[start:]
        if not is_plain(name):
            shown = "".join(c if c.isprintable() else "?" for c in name[:200])
            raise DatasetError(
                f"{uri}: the key '{shown}' cannot be a file in a folder", fix="Rename or remove that object."
            )
        objects[name] = entry
        if deadline is not None and time.monotonic() > deadline:
            raise NotReady(
                f"{uri}: listing takes long, {len(objects)} objects so far",
                fix="Name a prefix that holds the dataset only, with images packed as images.tar.gz.",
            )
    if not objects:
        raise DatasetError(f"{uri} holds nothing", fix="Check bucket and prefix; S3 keys are case-sensitive.")
    folders = {str(parent) for name in objects for parent in PurePosixPath(name).parents}
    if clash := sorted(folders & objects.keys()):
        raise DatasetError(f"{uri}: '{clash[0]}' is a file and a folder at once", fix="Rename one of them.")
    return State(uri, objects)
