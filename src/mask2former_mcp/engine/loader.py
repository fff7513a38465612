"""From a source to batches: workers, cache, order. The same seed gives the same batches whatever the number of workers.

Every sample is drawn with a generator of its own, seeded by (seed, pass, index), and the order of an epoch by
(seed, epoch); a pass is one use of the whole split, of which a long epoch has several. Nothing depends on which process
loads what, or on what was loaded before. So resuming is only starting the order somewhere in the middle.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mask2former_mcp.engine import augment, interruption, shared_slots
from mask2former_mcp.engine.augment import View
from mask2former_mcp.engine.criterion import Targets
from mask2former_mcp.engine.data import Annotated, Sample, Truth
from mask2former_mcp.engine.sample_cache import SampleCache
from mask2former_mcp.engine.targets import TargetRule
from mask2former_mcp.spec.dataset import Augmentation

CACHE_BYTES = 2 << 30  # at most this, and at most an eighth of what is free, for decoded training images
Key = tuple[int, int]  # (pass over the split, index)
AGAIN = 1  # the pass of images that are evaluated once more, and not counted

cv2.setNumThreads(0)  # its own threads and the loader's processes together would fight for the cores


@dataclass(frozen=True, slots=True)
class Item:
    """One image as a batch wants it: [h, w, 3], targets at stride 4, and where it came from."""

    image: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    name: str
    index: int  # in the split
    truth: Truth | None = None  # at the original size, where metrics need it


@dataclass(slots=True)
class Batch:
    """B images padded right and below to one size.

    images [B, 3, H, W] uint8 with zeros in the padding, in memory [B, H, W, 3] as files are read; labels [N],
    masks [N, h, w] of all images one after the other, counts how many each has; valid [B, h, w]; sizes (height, width)
    before padding; indices in the split; truths at the original sizes, None where an image is not to be measured.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    counts: list[int]
    valid: Tensor
    sizes: list[tuple[int, int]]
    names: list[str]
    indices: list[int]
    truths: list[Truth | None]

    def pin_memory(self) -> "Batch":
        """Called by the loader when it is asked to pin."""
        for part in ("images", "labels", "masks", "valid"):
            setattr(self, part, getattr(self, part).pin_memory())
        return self

    def targets(self, device: torch.device) -> Targets:
        labels = self.labels.to(device, non_blocking=True)
        masks = self.masks.to(device, non_blocking=True)
        return Targets(
            list(torch.split(labels, self.counts)),
            list(torch.split(masks, self.counts)),
            self.valid.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Normalize:
    """Pixels 0..255 -> what the network reads; padding becomes exactly zero."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor, sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """[B, 3, H, W] uint8 -> float32 on the device, for which nobody waits."""
        mean, std = _moments(tuple(self.mean), tuple(self.std), device)
        pixels = images.to(device, non_blocking=True)
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)
        for pixel, (height, width) in zip(pixels, sizes, strict=True):
            if (height, width) != pixel.shape[1:]:
                pixel[:, height:] = 0
                pixel[:, :, width:] = 0
        return pixels


@lru_cache(maxsize=4)
def _moments(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """[3, 1, 1] each, of pixels 0..255. Once for all streams: what is copied from such memory is there on return."""
    with torch.inference_mode(mode=False):  # training may be next
        both = (255 * torch.tensor((mean, std))).to(device)[..., None, None]
        return both[0], both[1]


class Samples(Dataset[Item]):
    """Items of a split. With `augmentation` they are training views; without, whole images at evaluation size."""

    def __init__(
        self,
        annotated: Annotated,
        rule: TargetRule,
        settings: Augmentation,
        *,
        seed: int | None,
        target_size: tuple[int, int] | None = None,
        within: tuple[int, int] | None = None,
        cache: bool = False,
    ) -> None:
        """seed: of the training views; None for evaluation. within: see `evaluation_view`."""
        self.source, self.rule, self.settings, self.seed = annotated.source, rule, settings, seed
        self.target_size, self.within = target_size, within
        self.limit = len(self.source)
        self._cache = _cache(len(self.source)) if cache else None

    def __len__(self) -> int:
        return min(self.limit, len(self.source))

    def __getitem__(self, key: Key) -> Item:
        turn, index = key
        sample = self._sample(index)
        if self.seed is None:
            return self._evaluation(sample, index, counted=turn != AGAIN)
        return self._training(sample, index, np.random.default_rng((self.seed, turn, index)))

    def _training(self, sample: Sample, index: int, rng: np.random.Generator) -> Item:
        truth = sample.truth
        view = augment.draw_view(
            rng, truth.size, self.settings, lambda view: truth.classes_at(view.labels(truth.planes))
        )
        labels, masks, valid = self.rule(truth, view.labels(truth.planes))
        image = augment.jitter(rng, view.image(sample.image))
        return Item(image, labels, masks, valid, self.source.name(index), index)

    def _evaluation(self, sample: Sample, index: int, *, counted: bool) -> Item:
        truth = sample.truth
        view = evaluation_view(truth.size, self.settings, self.target_size, self.within)
        labels, masks, valid = self.rule(truth, view.labels(truth.planes))
        name, shown = self.source.name(index), truth if counted else None
        return Item(view.image(sample.image), labels, masks, valid, name, index, shown)

    def _sample(self, index: int) -> Sample:
        if self._cache is None:
            return self.source.load(index)
        sample = self._cache.get(index)
        if sample is None:
            sample = self.source.load(index)
            self._cache.put(index, sample)
        return sample


@dataclass(frozen=True)
class Order:
    """Batches of (pass, index) keys for all epochs from `start_step` on: what a worker is asked for, in order.

    An epoch is `steps` batches of `batch` x `ranks` images, drawn without repetition until the split is used up; then
    the next shuffle begins. Each rank takes every `ranks`-th image.
    """

    images: int
    batch: int
    steps: int
    epochs: int
    seed: int
    start_step: int = 0
    rank: int = 0
    ranks: int = 1

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.start_step // self.steps, self.epochs):
            skip = self.start_step - epoch * self.steps if epoch == self.start_step // self.steps else 0
            order = self._epoch(epoch)
            for step in range(skip, self.steps):
                first = step * self.batch * self.ranks + self.rank
                yield order[first : first + self.batch * self.ranks : self.ranks]

    def __len__(self) -> int:
        return max(0, self.epochs * self.steps - self.start_step)

    def _epoch(self, epoch: int) -> list[Key]:
        rng = np.random.default_rng((self.seed, epoch))
        needed = self.steps * self.batch * self.ranks
        passes = -(-needed // self.images)
        return [(epoch * passes + n, int(i)) for n in range(passes) for i in rng.permutation(self.images)]


def steps_per_epoch(images: int, batch: int, others: int, iters_per_epoch: int | None) -> int:
    """Whole steps in the split, or what the spec says. others: processes x batches that a step has.

    Raises ValueError when the split is smaller than a step.
    """
    if images < batch * others:
        raise ValueError(
            f"the training split has {images} images, fewer than one step of dataset.train.batch_size = {batch} x"
            f" {others} (processes x train.accumulate_grad_batches). Set dataset.train.batch_size="
            f"{max(1, images // others)}{'' if images >= others else ', and fewer of those'}."
        )
    return iters_per_epoch or images // (batch * others)


def training_loader(samples: Samples, order: Order, *, workers: int, pin: bool) -> "DataLoader[Batch]":
    """One iterator for the whole run: workers keep their caches, and prefetch across the border of two epochs."""
    size = samples.settings.train_crop_size
    return batches(samples, order, Collate((size[0], size[1])), workers, pin=pin)


def evaluation_loader(
    samples: Samples,
    *,
    batch: int,
    workers: int,
    pin: bool,
    size: tuple[int, int] | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> "DataLoader[Batch]":
    """Every image once, in file order, the last batch maybe smaller. size: to pad to, if not to the largest image.

    Each of `ranks` processes takes every `ranks`-th batch: the batches are those of a single process. All take equally
    many, because they wait for each other; where no batch is left, one is evaluated again and not counted.
    """
    keys = [[(0, i) for i in range(at, min(at + batch, len(samples)))] for at in range(0, len(samples), batch)]
    return batches(samples, turns(keys, rank, ranks), Collate(size), workers, pin=pin)


def turns(keys: Sequence[list[Key]], rank: int, ranks: int) -> list[list[Key]]:
    """The batches of one process."""
    places = range(rank, -(-len(keys) // ranks) * ranks, ranks)
    return [keys[at] if at < len(keys) else [(AGAIN, i) for _, i in keys[at % len(keys)]] for at in places]


@dataclass(frozen=True)
class Collate:
    """Pads to `size`, or to the largest image of the batch."""

    size: tuple[int, int] | None

    def __call__(self, items: list[Item]) -> Batch:
        sizes = [(item.image.shape[0], item.image.shape[1]) for item in items]
        height, width = self.size or (max(h for h, _ in sizes), max(w for _, w in sizes))
        h, w = (-(-n // augment.STRIDE) for n in (height, width))
        images = np.stack([augment.padded(item.image, (height, width)) for item in items])
        masks = np.zeros((sum(len(item.labels) for item in items), h, w), dtype=bool)
        valid = np.zeros((len(items), h, w), dtype=bool)
        at = 0
        for b, item in enumerate(items):
            rows, columns = item.valid.shape
            masks[at : at + len(item.labels), :rows, :columns] = item.masks
            valid[b, :rows, :columns] = item.valid
            at += len(item.labels)
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(np.concatenate([item.labels for item in items])),
            torch.from_numpy(masks),
            [len(item.labels) for item in items],
            torch.from_numpy(valid),
            sizes,
            [item.name for item in items],
            [item.index for item in items],
            [item.truth for item in items],
        )


def evaluation_view(
    size: tuple[int, int],
    settings: Augmentation,
    target_size: tuple[int, int] | None,
    within: tuple[int, int] | None = None,
) -> View:
    """How an image of (height, width) enters the network when it is not trained on.

    within: the one size that an exported graph takes; the image is as large in it as its proportions allow.
    """
    if within is not None:
        scale = min(within[0] / size[0], within[1] / size[1])
        fitted = (min(within[0], max(1, round(size[0] * scale))), min(within[1], max(1, round(size[1] * scale))))
        return augment.whole(size, fitted)
    scaled = target_size or augment.shortest_edge(size, settings.test_min_size, settings.test_max_size)
    return augment.whole(size, scaled)


def pair(size: tuple[int, ...]) -> tuple[int, int] | None:
    """A spec's [height, width], or None where it is empty."""
    return (size[0], size[1]) if size else None


def can_share(workers: int) -> bool:
    """Whether the loader's processes will have the cache in common: forked ones do."""
    return workers == 0 or shared_slots.forks()


def _cache(images: int) -> SampleCache | None:
    """None where the system gives no room for one: it is a help, and nothing depends on it."""
    try:
        return SampleCache(images, min(CACHE_BYTES, psutil.virtual_memory().available // 8 // neighbours()))
    except OSError:
        return None


def cores() -> int:
    """CPU cores that this process may use: its share, where several train together on this machine."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // neighbours())


def neighbours() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def batches(
    samples: Dataset[Any], keys: Iterable[list[Any]], collate: Callable[[list[Any]], Any], workers: int, *, pin: bool
) -> "DataLoader[Any]":
    """A loader of `collate([samples[key], ...])` for each list of keys, in order. workers: at most one a core."""
    workers = min(workers, cores())
    return DataLoader(
        samples,
        batch_sampler=keys,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin and torch.cuda.is_available(),
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context="fork" if workers and shared_slots.forks() else None,
        # The loader draws a base seed from a generator each time it is iterated: not from the network's.
        generator=torch.Generator().manual_seed(0),
    )


def _start_worker(_worker: int) -> None:
    interruption.ignore()
    cv2.setNumThreads(0)
