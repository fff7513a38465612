"""The images of a folder as batches for the network: found, measured, put together by size, and read by the loader.

Images of about one size stand in one batch, padded to one size, so that the forward of that size can be recorded and
replayed. How far an image is padded follows from its group, and moves what is found in it by little.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mask2former_mcp.engine import loader, shared_slots
from mask2former_mcp.engine.pictures import NOWHERE, Kept, Pictures
from mask2former_mcp.formats import images
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.spec.dataset import Augmentation

Size = tuple[int, int]  # (height, width)
READERS = 16  # headers of files read at once
AHEAD = 1  # batches that the network has been given before the oldest of them is read out
GRAIN = 32  # pixels: sizes that differ by less, rounded up, share a batch


@dataclass(frozen=True, slots=True)
class Group:
    """Numbers of images that are segmented together, and the size that they are padded to (None: the largest one's)."""

    indices: tuple[int, ...]
    room: Size | None


@dataclass(frozen=True, slots=True)
class Photo:
    """image [h, w, 3] at network size; original: the file's own size; kept: what it was read as, where there was room;
    room: as the group's; batch: its number."""

    index: int
    image: NDArray[np.uint8]
    original: Size
    kept: Kept | None
    room: Size | None
    batch: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    index: int
    reason: str


@dataclass(slots=True)
class Shots:
    """images [B, 3, H, W] uint8, in memory [B, H, W, 3] as files are read, padded with zeros right and below; what is
    behind the last of `indices` is blank.

    indices, sizes at the network, original sizes, what was kept of the files: of those that could be read.
    """

    images: Tensor
    indices: list[int]
    sizes: list[Size]
    originals: list[Size]
    kept: list[Kept | None]
    unreadable: list[Unreadable]


@dataclass(slots=True)
class Parcel:
    """Shots on their way from the process that read them. taken: the [B, H, W, 3] that their images are, of a slot that
    both have; None where these travel with them, as a copy."""

    shots: Shots
    number: int  # of the batch
    taken: tuple[int, ...] | None

    def pin_memory(self) -> "Parcel":
        """Called by the loader when it is asked to pin."""
        if self.taken is None:
            self.shots.images = self.shots.images.pin_memory()
        return self


class Photos(Dataset["Photo | Unreadable"]):
    """The images, resized for the network; one that cannot be read is reported, not raised. Keys: (number of the image,
    its room, number of its batch, place in the order of all). pictures: where they are kept as they were read."""

    def __init__(
        self,
        paths: Sequence[Path],
        settings: Augmentation,
        target_size: Size | None,
        within: Size | None,
        pictures: Pictures = NOWHERE,
    ) -> None:
        self.paths, self.settings, self.target_size, self.within = paths, settings, target_size, within
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, Size | None, int, int]) -> "Photo | Unreadable":
        index, room, batch, place = key
        try:
            original = images.read(self.paths[index])
        except FormatError as error:
            return Unreadable(index, str(error))
        size = (original.shape[0], original.shape[1])
        view = loader.evaluation_view(size, self.settings, self.target_size, self.within)
        return Photo(index, view.image(original), size, self.pictures.keep(original, place), room, batch)

    def groups(self, batch: int, *, grain: int) -> list[Group]:
        """All images in batches of one size. The one size is known where the spec or a graph sets it; otherwise the
        files' headers tell, unless nothing depends on it. grain: see `grouped`."""
        fixed = self.within or self.target_size
        if fixed or (batch, grain) == (1, 1):
            return grouped([fixed] * len(self), batch, grain=grain)
        with ThreadPoolExecutor(READERS) as pool:  # over a network each header waits for an answer
            sizes = list(pool.map(self._size, self.paths))
        return grouped(sizes, batch, grain=grain)

    def _size(self, path: Path) -> Size | None:
        """At the network, from the file's header; None where it has none that can be read."""
        try:
            width, height = images.size(path)
        except FormatError:
            return None
        return loader.evaluation_view((height, width), self.settings, self.target_size, self.within).size


def grouped(sizes: Sequence[Size | None], batch: int, *, grain: int) -> list[Group]:
    """Batches of at most `batch` images whose sizes, rounded up to multiples of `grain`, are one; in the order of the
    folder, but the commonest size first: only so many sizes are recorded as graphs."""
    alike: dict[Size | None, list[int]] = {}
    for index, size in enumerate(sizes):
        alike.setdefault(size and (_up(size[0], grain), _up(size[1], grain)), []).append(index)
    groups = []
    for rounded, indices in sorted(alike.items(), key=lambda each: -len(each[1])):
        own = {sizes[i] for i in indices}
        room = own.pop() if len(own) == 1 else rounded
        groups += [Group(tuple(indices[at : at + batch]), room) for at in range(0, len(indices), batch)]
    return groups


@dataclass(frozen=True)
class Collate:
    """fill: the number of images that every batch has, blank ones if need be; 0: as many as there are. slots: those of
    `Batches`, which a batch fills in turn."""

    fill: int
    slots: Sequence[memoryview]

    def __call__(self, items: "list[Photo | Unreadable]") -> Parcel:
        photos = [item for item in items if isinstance(item, Photo)]
        sizes = [(p.image.shape[0], p.image.shape[1]) for p in photos]
        rooms = [*sizes, *(p.room for p in photos if p.room)]  # a header may have promised less than there is
        height, width = (max((room[axis] for room in rooms), default=0) for axis in (0, 1))
        shape = (max(self.fill, len(photos)) if photos else 0, height, width, 3)
        number = photos[0].batch if photos else 0
        images = _in_slot(self.slots, number, shape)
        taken = None if images is None else shape
        if images is None:
            images = np.empty(shape, dtype=np.uint8)
        for canvas, photo in zip(images, photos, strict=False):
            rows, columns = photo.image.shape[:2]
            canvas[:rows, :columns] = photo.image
            canvas[rows:], canvas[:rows, columns:] = 0, 0
        images[len(photos) :] = 0
        shots = Shots(
            torch.from_numpy(np.zeros(0, dtype=np.uint8) if taken else images.transpose(0, 3, 1, 2)),
            [p.index for p in photos],
            sizes,
            [p.original for p in photos],
            [p.kept for p in photos],
            [item for item in items if isinstance(item, Unreadable)],
        )
        return Parcel(shots, number, taken)


def _in_slot(slots: Sequence[memoryview], number: int, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """What the slot of this batch holds as images of this shape; None where it has no room for them."""
    slot, size = slots[number % len(slots)] if slots else b"", math.prod(shape)
    return np.frombuffer(slot, np.uint8, size).reshape(shape) if 0 < size <= len(slot) else None


@dataclass(frozen=True)
class Batches:
    """The Shots of all groups, in order. The images of one stay what they are until the one after the next AHEAD is
    asked for."""

    loader: "DataLoader[Parcel]"
    slots: Sequence[memoryview]

    def __iter__(self) -> Iterator[Shots]:
        for parcel in self.loader:
            if parcel.taken is not None:
                images = _in_slot(self.slots, parcel.number, parcel.taken)
                assert images is not None  # there was room where they were read
                parcel.shots.images = torch.from_numpy(images).permute(0, 3, 1, 2)
            yield parcel.shots


def batches(photos: Photos, groups: Sequence[Group], workers: int, *, fill: int, pin: bool) -> Batches:
    """All groups as Shots, which so many processes read."""
    place = itertools.count()
    keys = [[(i, group.room, n, next(place)) for i in group.indices] for n, group in enumerate(groups)]
    pixels = max((max(fill, len(g.indices)) * g.room[0] * g.room[1] for g in groups if g.room), default=0)
    slots = shared_slots.make(batches_under_way(workers), 3 * pixels) if workers else []
    if pin and torch.cuda.is_available():
        shared_slots.pin(slots)
    # A thread that pins what comes would find nothing to do.
    return Batches(loader.batches(photos, keys, Collate(fill, slots), workers, pin=pin and not slots), slots)


def batches_under_way(workers: int) -> int:
    """Batches at most: those that the loader's processes have been asked for (two each), those that the network has,
    and the next."""
    return 2 * min(workers, loader.cores()) + AHEAD + 1


def find_images(folder: str, *, without: Path | None = None) -> list[Path]:
    """The images in a folder and in those directly below it, in name order.

    without: the folder for results, which may lie below. Raises ValueError when there is no image, and where results
    would be written over them.
    """
    if not folder:
        raise ValueError("dataset.test.img_dir is empty: set it to the folder with the images to segment")
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"dataset.test.img_dir = {folder}: there is no such folder")
    own = without.resolve() if without is not None else None
    if own == root.resolve():
        raise ValueError(
            f"dataset.test.img_dir = {folder} is the folder for the results as well, and overlays would replace the"
            " images: set another results_dir"
        )
    below = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and p.resolve() != own)
    found = [image for place in (root, *below) for image in images.listing(place)]
    if not found:
        raise ValueError(f"dataset.test.img_dir = {folder}: no image ({', '.join(sorted(images.SUFFIXES))}) in it")
    return found


def _up(length: int, grain: int) -> int:
    return -(-length // grain) * grain
