"""Run lengths from borders equal those that pycocotools counts pixel by pixel."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mask2former_mcp.engine import run_lengths


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_masks_encode_as_pycocotools_encodes_them(share: float) -> None:
    masks = torch.rand(5, 31, 17, generator=torch.Generator().manual_seed(3)) < share  # [K, W, H]
    masks[0] = False  # no border at all
    masks[1, 0, 0] = True  # a run from the first pixel
    masks[2, -1, -1] = True  # and one to the last
    expected = coco_mask.encode(np.asfortranarray(masks.numpy().transpose(2, 1, 0).astype(np.uint8)))
    assert run_lengths.from_borders(masks) == expected
    assert run_lengths.encode(masks) == expected


def test_no_mask_at_all_encodes_to_nothing() -> None:
    assert run_lengths.from_borders(torch.zeros(0, 4, 4, dtype=torch.bool)) == []
