"""Where the parts of one dataset lie, by its format: annotations, images, masks, label map."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mask2former_mcp.datasets.reference import KINDS, DatasetRef, Place, contents, find, find_images
from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats import ade, json_stream
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.formats.names import ANNOTATIONS, IMAGES, LABEL_MAPS, MASKS
from mask2former_mcp.staging import archives


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a dataset. `images` and `masks` are what file names in the annotations are relative to.

    For ADE both are the folder that holds `images/` and `masks/`; `parts` then names the archives, if any.
    `first` are the first image's and mask's names: an archive's root is where they are found.
    """

    format: str
    annotations: Path
    images: Place | None
    masks: Place | None
    label_map: Path | None
    parts: tuple[Place, ...] = ()
    first: tuple[str | None, str | None] = (None, None)

    @classmethod
    def of(cls, ref: DatasetRef, format: str) -> "Layout":
        """What lies in the folder under the conventional names; only the annotation file must be there."""
        folder = ref.folder()
        annotations = find(ref, ANNOTATIONS[format])
        if annotations is None:
            raise missing(ANNOTATIONS[format], ref, format)
        label_map = find(ref, LABEL_MAPS[format])
        image, mask = first_names(annotations.path, format)
        named = None if label_map is None else label_map.path
        if format == "ade":
            parts = tuple(p for p in (find(ref, IMAGES), find(ref, MASKS["ade"])) if p is not None)
            root = Place(folder, "folder")
            packed = tuple(p for p in parts if p.kind == "archive")
            return cls(format, annotations.path, root, root, named, packed, (image, mask))
        images = find_images(ref, expects=image)
        masks = find(ref, MASKS[format], expects=mask) if format in MASKS else None
        return cls(format, annotations.path, images, masks, named, (), (image, mask))

    @classmethod
    def of_spec(cls, dataset: Mapping[str, Any], role: str) -> "Layout":
        """The same from a finished spec's `dataset` section (paths filled in); `role` is train or val."""
        section = dataset[role]
        format = section["type"]
        label_map = Path(dataset["label_map"]) if dataset.get("label_map") else None
        if format == "ade":
            root = Place(Path(section["root_dir"]), "folder")
            return cls(format, Path(section["annot_file"]), root, root, label_map)
        json_key = "panoptic_json" if format == "coco_panoptic" else "instance_json"
        masks = Place(Path(section["panoptic_dir"]), "folder") if format == "coco_panoptic" else None
        return cls(format, Path(section[json_key]), Place(Path(section["img_dir"]), "folder"), masks, label_map)


def first_names(annotations: Path, format: str) -> tuple[str | None, str | None]:
    """The first image's and the first mask's file name as the annotations give them; None where there is none.

    A broken file answers None: whoever reads it whole reports what is wrong. Where images come last it is read to the
    end, so a file is read once per (path, size, modification time) in this process.
    """
    status = annotations.stat()
    return _first_names(annotations, format, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _first_names(annotations: Path, format: str, _size: int, _mtime_ns: int) -> tuple[str | None, str | None]:
    image = mask = None
    try:
        if format == "ade":
            for number, line in ade.lines(annotations):
                pair = ade.pair(number, line, annotations)
                return pair.image, pair.mask
            return None, None
        for key, entry in json_stream.entries(annotations):
            name = entry.get("file_name") if isinstance(entry, dict) else None
            if isinstance(name, str) and key == "images" and image is None:
                image = name
            if isinstance(name, str) and key == "annotations" and mask is None:
                mask = name
            if image is not None and (mask is not None or format == "coco"):
                break
    except FormatError:
        pass
    return image, mask


def inside_part(name: str | None, stem: str) -> str | None:
    """An ADE path (`images/a/b.jpg`) as it lies in the archive of that part (`a/b.jpg`)."""
    return name.removeprefix(f"{stem}/") if name and name.startswith(f"{stem}/") else None


def no_images(ref: DatasetRef) -> DatasetError:
    """The error for a folder to look at that holds nothing to see."""
    return DatasetError(
        f"{ref.uri} holds no images; it holds: {contents(ref.folder()) or 'nothing'}",
        fix=f"Name an image file ({KINDS}), a folder of image files, or one with images/ or images.tar.gz; no "
        "annotations are needed to look at images.",
    )


def missing(name: str, ref: DatasetRef, format: str) -> DatasetError:
    """The error for a file that the format reads and the folder does not have."""
    label_map = [LABEL_MAPS[format]] if format == "ade" else []  # elsewhere the job writes its own
    wanted = [ANNOTATIONS[format], *label_map, IMAGES, *([MASKS[format]] if format in MASKS else [])]
    inside = contents(ref.folder()) or "nothing"
    return DatasetError(
        f"{ref.uri} has no {_either(name)}, which format {format} reads; it holds: {inside}",
        fix=f"Format {format} needs {', '.join(map(_either, wanted))}. Put it there, or name another dataset_format.",
        details={"file": name, "folder": ref.uri, "format": format},
    )


def _either(name: str) -> str:
    """An archive's name stands for the extracted folder too."""
    return f"{archives.stem(name)}/ or {name}" if archives.is_archive(name) else name
