"""Pictures as they were read, for the processes that draw on them: what these need not decode a second time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from mask2former_mcp.engine import shared_slots

Picture = NDArray[np.uint8]  # [H, W, 3]
Kept = tuple[int, int, int]  # the place of a picture in the order in which they are read, its height and width
LARGEST = 6 << 20  # bytes of pixels: 1920 x 1080 and a bit
_HEAD = 64  # bytes before them, which say whose they are


@dataclass(frozen=True, slots=True)
class Pictures:
    """Of several processes. slots: used in turn, so that only the last pictures are there."""

    slots: Sequence[memoryview]

    def keep(self, picture: Picture, place: int) -> Kept | None:
        """Says how `get` finds it; None where it has no room."""
        if not self.slots or picture.nbytes > LARGEST:
            return None
        head, pixels = self._slot(place)
        head[0] = -1
        pixels[: picture.size] = picture.reshape(-1)
        head[0] = place
        return place, picture.shape[0], picture.shape[1]

    def get(self, kept: Kept) -> Picture | None:
        """A copy; None where another one has taken its slot."""
        place, height, width = kept
        head, pixels = self._slot(place)
        found = pixels[: height * width * 3].reshape(height, width, 3).copy()
        return found if head[0] == place else None

    def _slot(self, place: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        slot = self.slots[place % len(self.slots)]
        return np.frombuffer(slot, np.int64, 1), np.frombuffer(slot, np.uint8, offset=_HEAD)


NOWHERE = Pictures(())  # where none is kept


def room_for(count: int) -> Pictures:
    """For so many, and for processes that are forked from now on. None is kept where that is more than an eighth of the
    memory that is free."""
    size = _HEAD + LARGEST
    if count * size > psutil.virtual_memory().available // 8:
        return NOWHERE
    return Pictures(shared_slots.make(count, size))
