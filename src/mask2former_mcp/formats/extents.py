"""Where the values of a label map are, found in one pass over it however many there are."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Extent(NamedTuple):
    """The pixels of one value: how many, and the box around them."""

    area: int
    left: int
    top: int
    width: int
    height: int

    @property
    def place(self) -> tuple[slice, slice]:
        """The box in the map."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


NOWHERE = Extent(0, 0, 0, 0, 0)


def extents(labels: NDArray[np.integer[Any]]) -> dict[int, Extent]:
    """By value, ascending, all that occur in [H, W] `labels`.

    A row is looked at as runs of one value, of which there are few: what follows costs next to nothing.
    """
    if not labels.size:
        return {}
    begins = np.ones(labels.shape, dtype=bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=labels.size)
    of_run = labels.reshape(-1)[starts]
    order = np.argsort(of_run, kind="stable")
    values, first = np.unique(of_run[order], return_index=True)
    rows, columns = np.divmod(starts[order], labels.shape[1])
    lengths = lengths[order]
    area = np.add.reduceat(lengths, first)
    left, top = np.minimum.reduceat(columns, first), np.minimum.reduceat(rows, first)
    width = np.maximum.reduceat(columns + lengths, first) - left
    height = np.maximum.reduceat(rows, first) + 1 - top
    found = zip(*(part.tolist() for part in (values, area, left, top, width, height)), strict=True)
    return {value: Extent(*extent) for value, *extent in found}
