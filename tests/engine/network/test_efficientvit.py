"""EfficientViT backbones: sizes, shapes, learning and export."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from mask2former_mcp.engine.model.efficientvit import SIZES, EfficientVit, LinearAttention
from mask2former_mcp.engine.model.network import Mask2Former, build
from mask2former_mcp.spec.experiment import load

# Published parameters in millions, with the ImageNet classifier, whose two widths are beside them.
PUBLISHED = {
    "b0": (3.41, 1024, 1280),
    "b1": (9.10, 1536, 1600),
    "b2": (24.33, 2304, 2560),
    "b3": (48.65, 2304, 2560),
    "l1": (52.65, 3072, 3200),
    "l2": (63.71, 3072, 3200),
    "l3": (246.04, 6144, 6400),
}


def network(name: str = "b0", **backbone: Any) -> Mask2Former:
    spec = {
        "backbone": {"type": "efficientvit", "efficientvit": {"name": name, **backbone}},
        "sem_seg_head": {"num_classes": 3, "convs_dim": 32, "mask_dim": 16, "transformer_enc_layers": 1},
        "mask_former": {"hidden_dim": 64, "nheads": 4, "num_object_queries": 5, "dec_layers": 2, "dim_feedforward": 32},
    }
    return build(load("train", {"model": spec}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_backbone_has_the_published_number_of_parameters(name: str) -> None:
    millions, first, second = PUBLISHED[name]
    with torch.device("meta"):
        backbone = EfficientVit(SIZES[name])
    width = SIZES[name].widths[-1]
    # 1 x 1 convolution with batch norm, linear, layer norm, linear with bias over 1000 classes
    classifier = width * first + 2 * first + first * second + 2 * second + second * 1000 + 1000
    found = sum(parameter.numel() for parameter in backbone.parameters()) + classifier
    assert round(found / 1e6, 2) == millions


def test_l0_is_l1_with_fewer_blocks() -> None:
    with torch.device("meta"):
        small, large = (EfficientVit(SIZES[name]).state_dict() for name in ("l0", "l1"))
    assert small.keys() < large.keys()
    assert all(small[name].shape == large[name].shape for name in small)


@pytest.mark.parametrize("name", ["b0", "l0"])
def test_names_are_those_of_published_files(name: str) -> None:
    with torch.device("meta"):
        names = EfficientVit(SIZES[name]).state_dict().keys()
    expected = {
        "b0": (
            "model.input_stem.op_list.1.main.depth_conv.conv.weight",
            "model.stages.0.op_list.0.main.inverted_conv.norm.running_mean",
            "model.stages.2.op_list.1.context_module.main.aggreg.0.1.weight",
        ),
        "l0": (
            "model.stages.0.op_list.1.main.conv2.norm.weight",
            "model.stages.1.op_list.0.main.spatial_conv.conv.weight",
            "model.stages.4.op_list.1.local_module.main.inverted_conv.conv.bias",
        ),
    }[name]
    assert all(one in names for one in expected)


@pytest.mark.parametrize("name", ["b0", "l0"])
@pytest.mark.parametrize("size", [(64, 64), (70, 101)])
def test_maps_have_strides_4_to_32_rounded_up(name: str, size: tuple[int, int]) -> None:
    backbone = EfficientVit(SIZES[name]).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, *size))
    for i, level in enumerate(maps):
        stride = 4 << i
        assert level.shape == (1, -(-size[0] // stride), -(-size[1] // stride), SIZES[name].widths[i + 1])


def test_linear_attention_is_what_its_definition_says() -> None:
    torch.manual_seed(0)
    layer = LinearAttention(8, head=4).double().eval()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    qkv = layer.qkv(x)
    out = []
    for scale in (qkv, layer.aggreg[0](qkv)):
        for head in range(2):
            q, k, v = scale[:, head * 12 : head * 12 + 12].flatten(2).split(4, 1)
            weights = torch.einsum("bdi,bdj->bij", q.relu(), k.relu())
            out.append(torch.einsum("bij,bdj->bdi", weights / weights.sum(-1, keepdim=True).clamp_min(1e-15), v))
    expected = layer.proj(torch.cat(out, 1).unflatten(2, (3, 5)))
    assert torch.allclose(layer(x), expected, atol=1e-9)


def test_bf16_autocast_keeps_the_sums_in_single_precision() -> None:
    torch.manual_seed(0)
    backbone = EfficientVit(SIZES["b0"]).eval()
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        exact = backbone(images)[-1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = backbone(images)[-1]
    assert rounded.isfinite().all()
    assert (rounded - exact).norm() < 0.1 * exact.norm()


def test_recomputed_activations_change_neither_gradients_nor_statistics() -> None:
    torch.manual_seed(0)
    plain, frugal = network(), network(use_checkpoint=True)
    frugal.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for model in (plain, frugal):
        model.train()(images).class_logits.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5), name
    for (name, a), b in zip(plain.named_buffers(), frugal.buffers(), strict=True):
        assert name.endswith("num_batches_tracked") or torch.allclose(a, b), name


def test_it_leaves_for_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = EfficientVit(SIZES["b0"]).eval()
    file, images = tmp_path / "backbone.onnx", torch.randn(2, 3, 64, 96)
    torch.onnx.export(
        backbone,
        (images,),
        file,
        input_names=["inputs"],
        dynamo=True,
        opset_version=18,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(images)
    for found, wanted in zip(session.run(None, {"inputs": images.numpy()}), expected, strict=True):
        assert np.abs(found - wanted.numpy()).max() < 1e-4
