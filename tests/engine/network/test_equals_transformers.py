"""The network against transformers' Mask2Former, an independent implementation, with the same weights."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from mask2former_mcp.engine.model import weights
from mask2former_mcp.engine.model.network import Mask2Former, build
from mask2former_mcp.spec.experiment import load

CLASSES = 5
QUERIES = 6


def network(*, convs_dim: int = 64, **former: object) -> Mask2Former:
    spec = {
        "backbone": {
            "swin": {
                "embed_dim": 24,
                "depths": [2, 1, 2, 1],
                "num_heads": [2, 3, 4, 6],
                "window_size": 5,
                "mlp_ratio": 2.0,
                "drop_path_rate": 0.0,
            }
        },
        "sem_seg_head": {"num_classes": CLASSES, "convs_dim": convs_dim, "mask_dim": 24, "transformer_enc_layers": 2},
        "mask_former": {
            "hidden_dim": 64,
            "nheads": 4,
            "num_object_queries": QUERIES,
            "dec_layers": 5,
            "dim_feedforward": 96,
            **former,
        },
    }
    return build(load("train", {"model": spec}))


def reference(*, convs_dim: int = 64, pre_norm: bool = False) -> Mask2FormerForUniversalSegmentation:
    swin = SwinConfig(
        embed_dim=24,
        depths=[2, 1, 2, 1],
        num_heads=[2, 3, 4, 6],
        window_size=5,
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=convs_dim,
        mask_feature_size=24,
        hidden_dim=64,
        encoder_layers=2,
        decoder_layers=5,
        num_attention_heads=4,
        dim_feedforward=96,
        encoder_feedforward_dim=1024,
        num_queries=QUERIES,
        num_labels=CLASSES,
        pre_norm=pre_norm,
        output_auxiliary_logits=True,
    )
    return Mask2FormerForUniversalSegmentation(config)


def same_random_weights(
    ours: Mask2Former, theirs: Mask2FormerForUniversalSegmentation, seed: int
) -> tuple[Mask2Former, Mask2FormerForUniversalSegmentation]:
    """Both in float64, no weight at a special value: zeros and ones of the initialisation would hide mistakes."""
    ours, theirs = ours.double().train(), theirs.double().train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    loaded = theirs.load_state_dict(weights.to_transformers(ours.state_dict()), strict=False)
    assert not loaded.unexpected_keys
    assert all(
        name.startswith(("criterion.", "model.pixel_level_module.encoder.swin.layernorm"))
        for name in loaded.missing_keys
    )
    return ours, theirs


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((64, 64), {}),
        ((101, 75), {}),
        ((96, 160), {"pre_norm": True}),
        ((70, 133), {"convs_dim": 32}),
        ((20, 37), {}),
    ],
    ids=str,
)
def test_outputs_of_all_layers_and_every_gradient_are_equal(size: tuple[int, int], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, other = network(**options), reference(**options)
    if "convs_dim" in options and not any("input_projections" in name for name in other.state_dict()):
        pytest.skip("this version of transformers keeps its input projections out of the state dict")
    ours, theirs = same_random_weights(model, other, seed=sum(size))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    here, there = images.clone().requires_grad_(), images.clone().requires_grad_()

    prediction = ours(here)
    output = theirs(there)
    layers = [*output.auxiliary_logits, output]
    class_logits = torch.stack([layer["class_queries_logits"] for layer in layers]).roll(1, -1)
    mask_logits = torch.stack([layer["masks_queries_logits"] for layer in layers])
    masks = torch.stack([prediction.mask_logits(layer) for layer in range(len(layers))])

    assert masks.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))
    assert relative(prediction.class_logits, class_logits) < 1e-6
    assert relative(masks, mask_logits) < 1e-6

    weigh_classes, weigh_masks = torch.randn_like(class_logits), torch.randn_like(mask_logits)
    ((prediction.class_logits * weigh_classes).sum() + (masks * weigh_masks).sum()).backward()
    ((class_logits * weigh_classes).sum() + (mask_logits * weigh_masks).sum()).backward()
    assert relative(here.grad, there.grad) < 1e-6
    expected = weights.from_transformers({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert found.keys() == expected.keys()
    # Key biases have no gradient but rounding (softmax ignores a shift), hence the floor.
    floor = 1e-12 * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max() + floor, name


def test_in_evaluation_only_the_last_layer_is_predicted_and_it_is_the_same() -> None:
    ours, _ = same_random_weights(network(), reference(), seed=1)
    images = torch.randn(1, 3, 50, 66, dtype=torch.float64)
    with torch.no_grad():
        all_layers = ours.eval()(images, every_layer=True)
        last = ours(images)
    assert (len(all_layers.class_logits), len(last.class_logits)) == (5, 1)
    torch.testing.assert_close(last.class_logits[-1], all_layers.class_logits[-1])
    torch.testing.assert_close(last.mask_logits(), all_layers.mask_logits())
