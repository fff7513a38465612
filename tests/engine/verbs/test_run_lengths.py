"""Run lengths from borders equal those that pycocotools counts pixel by pixel."""

import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mask2former_mcp.engine import run_lengths
from mask2former_mcp.engine.run_lengths import RunLengths


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_masks_encode_as_pycocotools_encodes_them(share: float) -> None:
    masks = torch.rand(5, 31, 17, generator=torch.Generator().manual_seed(3)) < share  # [K, W, H]
    masks[0] = False  # no border at all
    masks[1, 0, 0] = True  # a run from the first pixel
    masks[2, -1, -1] = True  # and one to the last
    expected = coco_mask.encode(np.asfortranarray(masks.numpy().transpose(2, 1, 0).astype(np.uint8)))
    parts = [masks[:2], masks[2:2], masks[2:]]
    assert run_lengths.encode(parts, (17, 31), torch.device("cpu")) == expected
    assert list(run_lengths.encode(parts, (17, 31), torch.device("cuda"))) == expected
    found = RunLengths((17, 31), *run_lengths.borders([masks[:2], masks[2:2], masks[2:]]), range(5))
    assert list(found) == expected


def test_masks_that_a_gpu_found_are_encoded_by_the_process_that_reads_them() -> None:
    masks = torch.rand(3, 20, 10, generator=torch.Generator().manual_seed(3)) < 0.3
    sent = pickle.loads(pickle.dumps(RunLengths((10, 20), *run_lengths.borders([masks]), [2, 0, 2])))
    expected = coco_mask.encode(np.asfortranarray(masks.numpy().transpose(2, 1, 0).astype(np.uint8)))
    assert not sent._known
    assert list(sent) == [expected[2], expected[0], expected[2]]
    assert list(sent[1:]) == [expected[0], expected[2]]
