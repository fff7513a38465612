"""Decoded training images in memory that all of the loader's workers share: each is decoded once, not once a worker.

One anonymous mapping, made before the workers are forked. It is filled from the front until it is full; what comes then
is decoded every time. Pages take memory only once they are written.
"""

import mmap
import multiprocessing
import pickle
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mask2former_mcp.engine.data import Sample, Truth

ALIGNMENT = 64  # bytes, at which arrays begin


class _Header(NamedTuple):
    """All of a sample but its two large arrays, which follow in the memory."""

    image: tuple[int, ...]
    planes: tuple[int, ...]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    exhaustive: bool


class SampleCache:
    """Samples by index. What is read is the shared memory itself, and cannot be written to."""

    def __init__(self, images: int, budget: int) -> None:
        """budget: bytes for all of them. Raises OSError where the system has no address range of that size."""
        self._memory = mmap.mmap(-1, _aligned(8 * (images + 1)) + budget)
        # Where each sample begins (0: nowhere), and last where the free memory does.
        self._begin = np.frombuffer(self._memory, dtype=np.int64, count=images + 1)
        self._begin[-1] = _aligned(8 * (images + 1))
        self._lock = multiprocessing.Lock()

    def get(self, index: int) -> Sample | None:
        with self._lock:
            begin = int(self._begin[index])
        if not begin:
            return None
        length = int(np.frombuffer(self._memory, np.int64, 1, begin)[0])
        header = _Header(*pickle.loads(self._memory[begin + 8 : begin + 8 + length]))
        at = _aligned(begin + 8 + length)
        image = np.frombuffer(self._memory, np.uint8, int(np.prod(header.image)), at).reshape(header.image)
        at = _aligned(at + image.nbytes)
        planes = np.frombuffer(self._memory, np.uint16, int(np.prod(header.planes)), at).reshape(header.planes)
        image.flags.writeable = planes.flags.writeable = False
        return Sample(image, Truth(planes, header.labels, header.crowd, header.exhaustive))

    def put(self, index: int, sample: Sample) -> None:
        """Keeps a sample if there is room. Two workers that bring the same one at once take room twice, no more."""
        truth = sample.truth
        header = _Header(sample.image.shape, truth.planes.shape, truth.labels, truth.crowd, truth.exhaustive)
        described = pickle.dumps(tuple(header))
        image_at = _aligned(8 + len(described))
        planes_at = _aligned(image_at + sample.image.nbytes)
        size = _aligned(planes_at + truth.planes.nbytes)
        with self._lock:
            begin = int(self._begin[-1])
            if begin + size > len(self._memory):
                return
            self._begin[-1] = begin + size
        np.frombuffer(self._memory, np.int64, 1, begin)[0] = len(described)
        self._memory[begin + 8 : begin + 8 + len(described)] = described
        for at, array in ((image_at, sample.image), (planes_at, truth.planes)):
            place = np.frombuffer(self._memory, array.dtype, array.size, begin + at)
            place[:] = array.reshape(-1)
        with self._lock:
            self._begin[index] = begin


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT
