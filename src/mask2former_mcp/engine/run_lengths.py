"""Masks as COCO's compressed run lengths, without bringing every pixel to the host."""

from typing import Any

import numpy as np
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """K bool masks [K, W, H], that is in the column order run lengths count in -> {"size": [H, W], "counts": bytes}."""
    if masks.device.type == "cpu":
        found: list[dict[str, Any]] = coco_mask.encode(masks.numpy().view(np.uint8).transpose(2, 1, 0))
        return found
    return from_borders(masks)


def from_borders(masks: Tensor) -> list[dict[str, Any]]:
    """The same from the places alone where a mask begins or ends, which its device finds."""
    number, width, height = masks.shape
    if not number:
        return []
    flat = F.pad(masks.flatten(1), (1, 0))  # a mask that begins with its first pixel begins there too
    mask, place = (flat[:, 1:] != flat[:, :-1]).nonzero().T.cpu().numpy()
    borders = np.split(place, np.searchsorted(mask, np.arange(1, number)))
    runs = [np.diff(at, prepend=0, append=width * height).tolist() for at in borders]
    plain = [{"size": [height, width], "counts": counts} for counts in runs]
    encoded: list[dict[str, Any]] = coco_mask.frPyObjects(plain, height, width)
    return encoded
