"""Masks as COCO's compressed run lengths, without bringing every pixel to the host."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

Encoded = dict[str, Any]  # {"size": [H, W], "counts": bytes}


@dataclass(slots=True)
class RunLengths(Sequence[Encoded]):
    """The masks of one image of `size` (H, W), encoded when they are asked for.

    A GPU finds the places where masks begin and end. To make texts of them takes longer than all else that is done for
    an image, and can be left to the process that reads them.
    """

    size: tuple[int, int]
    _masks: "list[Encoded | NDArray[np.int32]]" = field(default_factory=list)  # encoded, or the places of its borders
    _order: Sequence[int] | None = None  # which of them these are, where not all as they are

    def add(self, masks: Tensor) -> None:
        """masks: K bool masks [K, W, H], that is in the column order run lengths count in."""
        if masks.device.type == "cpu":
            self._masks.extend(coco_mask.encode(masks.numpy().view(np.uint8).transpose(2, 1, 0)))
        elif len(masks):
            self._masks.extend(borders(masks))

    def of(self, order: Sequence[int]) -> "RunLengths":
        """The masks with these numbers; one may come several times."""
        return replace(self, _order=order)

    def __len__(self) -> int:
        return len(self._masks if self._order is None else self._order)

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> "RunLengths": ...
    def __getitem__(self, at: int | slice) -> "Encoded | RunLengths":
        order = range(len(self._masks)) if self._order is None else self._order
        if isinstance(at, slice):
            return self.of(order[at])
        number = order[at]
        found = self._masks[number]
        if not isinstance(found, dict):
            found = self._masks[number] = encode(found, self.size)
        return found


def borders(masks: Tensor) -> list[NDArray[np.int32]]:
    """[K, W, H] bool -> for each mask the places, ascending, at which it begins or ends."""
    flat = F.pad(masks.flatten(1), (1, 0))  # a mask that begins with its first pixel begins there too
    mask, place = (flat[:, 1:] != flat[:, :-1]).nonzero().int().T.cpu().numpy()
    return np.split(place, np.searchsorted(mask, np.arange(1, len(masks))))


def encode(places: NDArray[np.int32], size: tuple[int, int]) -> Encoded:
    """The mask of `size` (H, W) with these borders."""
    height, width = size
    counts = np.diff(places, prepend=0, append=width * height).tolist()
    encoded: Encoded = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return encoded
