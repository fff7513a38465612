"""The cache that the loader's workers share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from mask2former_mcp.engine import data, loader, targets
from mask2former_mcp.engine.data import Sample, Truth
from mask2former_mcp.engine.sample_cache import SampleCache
from mask2former_mcp.spec.experiment import load


def sample(seed: int, side: int = 10) -> Sample:
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 3, (1 + seed % 2, side, side + seed)).astype(np.uint16)
    truth = Truth(planes, np.array([4, 7]), np.array([False, True]), exhaustive=bool(seed % 2))
    return Sample(rng.integers(0, 256, (side, side + seed, 3), dtype=np.uint8), truth)


def same(a: Sample, b: Sample) -> bool:
    pairs = [(a.image, b.image), (a.truth.planes, b.truth.planes), (a.truth.labels, b.truth.labels)]
    pairs.append((a.truth.crowd, b.truth.crowd))
    equal = all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)
    return equal and a.truth.exhaustive == b.truth.exhaustive


def test_samples_of_any_size_come_back_as_they_were() -> None:
    cache = SampleCache(5, 100_000)
    assert cache.get(3) is None
    for index in (3, 0, 4):
        cache.put(index, sample(index))
    for index in (0, 3, 4):
        found = cache.get(index)
        assert found is not None
        assert same(found, sample(index))
    assert cache.get(1) is None


def test_a_full_cache_keeps_what_it_has_and_takes_smaller_ones() -> None:
    cache = SampleCache(3, 3_000)
    cache.put(0, sample(0))
    cache.put(1, sample(1, side=60))  # more than there is
    cache.put(2, sample(2))
    assert [cache.get(index) is not None for index in range(3)] == [True, False, True]


@dataclass(frozen=True)
class Counted:
    """A source that leaves a mark for each image that it decodes, and by whom."""

    inner: data.Source
    marks: Path

    def __len__(self) -> int:
        return len(self.inner)

    def name(self, index: int) -> str:
        return self.inner.name(index)

    def load(self, index: int) -> Sample:
        worker = get_worker_info()
        with (self.marks / f"{index}").open("a") as file:
            file.write(f"{worker.id if worker else 'main'} ")
        return self.inner.load(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_decoded_once_whichever_worker_needs_it(
    workers: int, tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "cores", lambda: 2)
    spec = load("train", tiny())
    opened = data.open_split(spec.dataset.train, spec.dataset, num_classes=3)
    counted = data.Annotated(Counted(opened.source, tmp_path), opened.classes)
    rule = targets.rule_for("panoptic", opened.classes)
    samples = loader.Samples(counted, rule, spec.dataset.augmentation, seed=0, cache=loader.can_share(workers))
    order = loader.Order(images=8, batch=2, steps=4, epochs=5, seed=1)
    batches = list(loader.training_loader(samples, order, workers=workers, pin=False))
    decoded = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    assert len(decoded) == 8
    # Over five epochs every worker is asked for nearly every image. Both may be at the same one at once, at first.
    assert sum(map(len, decoded.values())) <= 8 + 2 * workers
    assert len({name for names in decoded.values() for name in names}) == max(1, workers)
    plain = loader.Samples(opened, rule, spec.dataset.augmentation, seed=0)
    wanted = list(loader.training_loader(plain, order, workers=0, pin=False))
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks) for a, b in zip(batches, wanted, strict=True)
    )
