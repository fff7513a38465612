"""Which metrics a mode and a format have."""

import numpy as np
import pytest
import torch

from mask2former_mcp.engine.classes import Classes, Entry
from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.model.network import Prediction
from mask2former_mcp.engine.postprocess import Instances
from mask2former_mcp.engine.scoring import Interpreter, Outcome, Scores
from mask2former_mcp.spec.model import Model

CAN = Classes((Entry(1, "can", True, (200, 0, 0)),))


def test_instances_that_were_not_found_are_no_success() -> None:
    """A map of classes names one for every pixel: over the annotated pixels alone it is always right here."""
    planes = np.zeros((1, 8, 8), dtype=np.uint16)
    planes[0, 2:6, 2:6] = 1
    truth = Truth(planes, np.array([1]), np.array([False]), exhaustive=False)
    none = Instances(classes=np.zeros(0, np.int64), scores=np.zeros(0), masks=())
    scores = Scores("instance", "coco", CAN)
    scores.add(truth, Outcome(np.ones((8, 8), np.int32), instances=none), 0)
    found = scores.results()
    assert found["AP"] == 0.0
    assert "mIoU" not in found
    assert "ACC_all" not in found


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("semantic", {"semantic"}),
        ("instance", {"instances"}),
        ("panoptic", {"semantic", "panoptic", "instances"}),
    ],
)
def test_a_mode_computes_what_it_needs_and_nothing_else(mode: str, parts: set[str]) -> None:
    prediction = Prediction(torch.randn(1, 1, 5, 2), torch.randn(1, 1, 5, 8), torch.randn(1, 8, 4, 4))
    (outcome,) = Interpreter(Model(mode=mode), CAN)(prediction, [(16, 16)], (16, 16), [(20, 20)])
    assert {part for part in ("semantic", "panoptic", "instances") if getattr(outcome, part) is not None} == parts
