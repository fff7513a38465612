"""Weights in half precision: only where the kernels sample, and then with the predictions of full precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from mask2former_mcp.engine import device, fast, photos, usable
from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.engine.model import network
from mask2former_mcp.engine.model.pixel_decoder import DeformableAttention, Geometry, sample
from mask2former_mcp.engine.photos import Photos
from mask2former_mcp.engine.segmenting import Segmenter
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]


def kernel(value: Tensor, places: Tensor, sizes: list[int]) -> Tensor:
    """What the CUDA kernel computes, whatever the type of the weights: places and sums in float32."""
    batch, tokens, heads, _ = value.shape
    offsets, logits = places.float().split((heads * 24, heads * 12), -1)
    geometry = Geometry.of(list(zip(sizes[::2], sizes[1::2], strict=True)), like=offsets)
    weights = logits.view(batch, tokens, heads, 12).softmax(-1)
    found = sample(value.float(), offsets.view(batch, tokens, heads, 3, 4, 2), weights, geometry)
    return found.view(value.shape).to(value.dtype)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_weights_predict_what_full_ones_do(precision: str, tiny: Spec, weights: Path, shapes: Path) -> None:
    spec = load("inference", tiny(inference__checkpoint=str(weights)))
    folder = Photos(sorted((shapes / "val" / "images").iterdir()), spec.dataset.augmentation, None, None)
    shots = next(iter(photos.batches(folder, folder.groups(4, grain=32), 0, fill=0, pin=False)))
    maps = []
    for how in ("32-true", device.HALF_WEIGHTS[precision]):
        known = usable.open_model(spec, str(weights))
        assert known.classes is not None
        for module in known.model.modules():
            if isinstance(module, DeformableAttention):
                module.fused = kernel
        assert fast.allows_half_weights(known.model)
        fabric = Fabric(accelerator="cpu", devices=1, precision=how)
        model = fabric.setup_module(known.model)
        assert (next(model.parameters()).dtype == torch.float32) == (how == "32-true")
        normalize = Normalize(spec.dataset.pixel_mean, spec.dataset.pixel_std)
        segmenter = Segmenter(model, known.interpreter(spec, known.classes, fabric.device), normalize, fabric.device)
        ((_, outcomes),) = segmenter([shots])
        maps.append([outcome.semantic for outcome in outcomes])
    same = [float((a == b).mean()) for a, b in zip(*maps, strict=True)]
    assert min(same) > 0.97


def test_weights_stay_whole_without_the_kernel_and_with_batch_norm(tiny: Spec) -> None:
    plain = network.build(load("train", tiny()))
    assert not fast.allows_half_weights(plain)
    conv = network.build(load("train", tiny(model__backbone__type="efficientvit")))
    for module in conv.modules():
        if isinstance(module, DeformableAttention):
            module.fused = kernel
    assert not fast.allows_half_weights(conv)


@pytest.mark.parametrize(
    ("precision", "weights", "mixed"), [("fp32", "32-true", "32-true"), ("bf16", "bf16-true", "bf16-mixed")]
)
def test_the_default_precision_stays_whole_and_half_is_a_choice(precision: str, weights: str, mixed: str) -> None:
    found = [device.single((0,), precision, half_weights=half).strategy.precision.precision for half in (True, False)]
    assert found == [weights, mixed]
