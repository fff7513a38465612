"""Masks as COCO's compressed run lengths, without bringing every pixel to the host."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

Encoded = dict[str, Any]  # {"size": [H, W], "counts": bytes}


@dataclass(slots=True)
class RunLengths(Sequence[Encoded]):
    """Masks of one image of `size` (H, W), encoded when they are asked for.

    A GPU finds the places where masks begin and end. To make texts of them is left to whoever reads them: another
    process, where these are sent to one. places: those of K masks, one mask's after the other's,
    from bounds [K + 1] on; order: the number of each mask here, which may come several times.
    """

    size: tuple[int, int]
    places: NDArray[np.int32]
    bounds: Sequence[int]
    order: Sequence[int]
    _known: dict[int, Encoded] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> "RunLengths": ...
    def __getitem__(self, at: int | slice) -> "Encoded | RunLengths":
        if isinstance(at, slice):
            return replace(self, order=self.order[at])
        number = self.order[at]
        if number not in self._known:
            start, stop = self.bounds[number], self.bounds[number + 1]
            self._known[number] = _encoded(self.places[start:stop], self.size)
        return self._known[number]


def encode(parts: Iterable[Tensor], size: tuple[int, int], device: torch.device) -> Sequence[Encoded]:
    """Bool masks [K, W, H] in parts, that is in the column order run lengths count in. size: (H, W); device: theirs."""
    if device.type == "cpu":
        return [one for masks in parts for one in coco_mask.encode(masks.numpy().view(np.uint8).transpose(2, 1, 0))]
    places, bounds = borders(parts)
    return RunLengths(size, places, bounds, range(len(bounds) - 1))


def pick(masks: Sequence[Encoded], numbers: Sequence[int]) -> Sequence[Encoded]:
    """Those of these numbers, which may come several times; what is not encoded yet stays so."""
    return replace(masks, order=numbers) if isinstance(masks, RunLengths) else [masks[number] for number in numbers]


def borders(parts: Iterable[Tensor]) -> tuple[NDArray[np.int32], list[int]]:
    """Bool masks [K, W, H] in parts -> the places, ascending, at which each begins or ends, and where its own start."""
    places: list[Tensor] = []
    counts: list[Tensor] = []
    for masks in parts:
        flat = masks.flatten()
        changed = flat.clone()
        changed[1:] ^= flat[:-1]
        changed = changed.view(masks.shape)
        changed[:, 0, 0] = masks[:, 0, 0]  # a mask that has its first pixel begins there, whatever came before it
        mask, place = changed.flatten(1).nonzero().T
        places.append(place.int())
        numbers = torch.arange(len(masks) + 1, device=mask.device)
        counts.append(torch.searchsorted(mask.contiguous(), numbers).diff())
    if not places:
        return np.zeros(0, dtype=np.int32), [0]
    return torch.cat(places).cpu().numpy(), [0, *torch.cat(counts).cumsum(0).tolist()]


def _encoded(places: NDArray[np.int32], size: tuple[int, int]) -> Encoded:
    height, width = size
    counts = np.append(places, width * height)
    counts[1:] -= places
    encoded: Encoded = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return encoded
