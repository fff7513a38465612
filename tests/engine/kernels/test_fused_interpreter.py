"""What is read out by the kernel, half precision included, is what the plain interpreter reads out on a CPU."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton exists for Linux only")

from pycocotools import mask as coco_mask

from mask2former_mcp.engine import fast, fused_interpreter, postprocess
from mask2former_mcp.engine.classes import Classes, Entry
from mask2former_mcp.engine.fused_interpreter import FusedInterpreter
from mask2former_mcp.engine.model.network import Prediction
from mask2former_mcp.engine.scoring import Interpreter, Outcome
from mask2former_mcp.spec.model import Model

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
QUERIES, CLASSES, DIM = (100, 80, 32) if CUDA else (12, 9, 8)
GRID, PADDED = ((160, 192), (640, 768)) if CUDA else ((12, 16), (48, 64))
KEPT = [(640, 720), (600, 768), (640, 720)] if CUDA else [(48, 60), (40, 64), (48, 60)]
ORIGINALS = [(1100, 1230), (300, 384), (1100, 1230)] if CUDA else [(37, 45), (20, 32), (37, 45)]
KNOWN = Classes(tuple(Entry(c + 1, f"class {c + 1}", c % 2 == 0, (0, 0, 0)) for c in range(CLASSES)))
# Share of pixels that may fall the other way, by the precision that the network's masks come in.
SHARES = [(torch.float32, 1e-4), (torch.float16, 2e-3), (torch.bfloat16, 2e-3)]
# Of pixels to hold at once, and how three images, two of them of one size, are looked at then, which of them early.
ROOMS = [
    (1 << 24, [([0, 2], True), ([1], True)]),
    (1 << 19 if CUDA else 3000, [([0], True), ([2], False), ([1], False)]),
]


def prediction() -> Prediction:
    """Four images, three queries of ten confident; masks that are blobs."""
    torch.manual_seed(0)
    classes = 5 * torch.randn(1, 4, QUERIES, CLASSES + 1)
    classes[:, :, ::3, 0] -= 30
    classes[:, :, 1::3, 0] += 30
    blobs = F.interpolate(torch.randn(4, DIM, 5, 6), size=GRID, mode="bicubic")
    embeddings = torch.randn(1, 4, QUERIES, DIM) * 3
    return Prediction(classes, embeddings, blobs)


@pytest.mark.parametrize(("dtype", "share"), SHARES, ids=str)
@pytest.mark.parametrize(("room", "parts"), ROOMS)
def test_both_read_out_the_same(
    dtype: torch.dtype, share: float, room: int, parts: list[tuple[list[int], bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postprocess, "STRIPE_ELEMENTS", room)
    assert [(p.places, p.early) for p in fused_interpreter._parts(KEPT, ORIGINALS, DEVICE)] == parts
    half = Prediction(*(part.to(dtype) for part in prediction()))
    model = Model(mode="panoptic", test_topk_per_image=30, object_mask_threshold=0.3, overlap_threshold=0.3)
    wanted = Interpreter(model, KNOWN)(Prediction(*(part.float() for part in half)), KEPT, PADDED, ORIGINALS)
    found = FusedInterpreter(model, KNOWN.things)(Prediction(*(p.to(DEVICE) for p in half)), KEPT, PADDED, ORIGINALS)
    assert len(found) == len(wanted) == 3
    assert_alike(found, wanted, share)


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_a_gpu_reads_out_plainly_what_a_cpu_does() -> None:
    model = Model(mode="panoptic", test_topk_per_image=30, object_mask_threshold=0.3, overlap_threshold=0.3)
    wanted = Interpreter(model, KNOWN)(prediction(), KEPT, PADDED, ORIGINALS)
    found = Interpreter(model, KNOWN)(Prediction(*(p.to(DEVICE) for p in prediction())), KEPT, PADDED, ORIGINALS)
    assert_alike(found, wanted, 1e-4)


def assert_alike(found: list[Outcome], wanted: list[Outcome], share: float) -> None:
    for ours, plain in zip(found, wanted, strict=True):
        assert (ours.semantic != plain.semantic).mean() < share
        assert len(plain.panoptic.segments) > 1
        assert [s.class_ for s in ours.panoptic.segments] == [s.class_ for s in plain.panoptic.segments]
        assert (ours.panoptic.ids != plain.panoptic.ids).mean() < share
        np.testing.assert_allclose(ours.instances.scores, plain.instances.scores, atol=share)
        assert ours.instances.classes.tolist() == plain.instances.classes.tolist()
        masks = list(ours.instances.masks), list(plain.instances.masks)
        overlaps = coco_mask.iou(*masks, [0] * len(masks[0])).diagonal()
        assert overlaps.min() > 1 - 10 * share


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("semantic", {"semantic"}),
        ("instance", {"instances"}),
        ("panoptic", {"semantic", "panoptic", "instances"}),
    ],
)
def test_a_mode_computes_what_it_needs_and_nothing_else(mode: str, parts: set[str]) -> None:
    on_device = Prediction(*(part.to(DEVICE) for part in prediction()))
    (outcome,) = FusedInterpreter(Model(mode=mode), KNOWN.things)(on_device, KEPT[1:2], PADDED, ORIGINALS[1:2])
    assert {part for part in ("semantic", "panoptic", "instances") if getattr(outcome, part) is not None} == parts
    assert FusedInterpreter(Model(mode=mode), KNOWN.things)(None, [], PADDED, []) == []


def test_where_nothing_is_sure_enough_nothing_is_found() -> None:
    unsure = prediction()
    unsure.class_logits[..., 0] = 60
    on_device = Prediction(*(part.to(DEVICE) for part in unsure))
    (outcome,) = FusedInterpreter(Model(), KNOWN.things, min_score=0.5)(on_device, KEPT[:1], PADDED, ORIGINALS[:1])
    assert outcome.panoptic.segments == ()
    assert not outcome.panoptic.ids.any()
    assert len(outcome.instances.masks) == 0


def test_a_cpu_and_more_queries_than_fit_are_read_out_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Interpreter(Model(), KNOWN)
    assert fast.interpreter(plain, torch.device("cpu")) is plain
    monkeypatch.setattr(fast, "available", lambda device: True)
    assert isinstance(fast.interpreter(plain, DEVICE), FusedInterpreter)
    many = Model(mask_former={"num_object_queries": 300})
    assert isinstance(fast.interpreter(Interpreter(many, KNOWN), DEVICE), Interpreter)
