"""Names, shapes, options and initialisation of the network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former_mcp.engine import criterion
from mask2former_mcp.engine.criterion import Targets
from mask2former_mcp.engine.model import weights
from mask2former_mcp.engine.model.network import Mask2Former, build
from mask2former_mcp.spec.experiment import load
from mask2former_mcp.spec.swin_sizes import SWIN_SIZES as SIZES

FACTS = json.loads((Path(__file__).parents[2] / "facts" / "weight-names-swin-tiny.json").read_text())


def make(model: dict[str, Any], **train: Any) -> Mask2Former:
    return build(load("train", {"model": model, "train": train}))


def small(**changes: Any) -> dict[str, Any]:
    swin = {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [2, 3, 4, 6], "window_size": 5, "drop_path_rate": 0.2}
    return {
        "backbone": {"swin": swin | changes.get("swin", {})},
        "sem_seg_head": {"num_classes": 4, "convs_dim": 32, "mask_dim": 16, "transformer_enc_layers": 1}
        | changes.get("sem_seg_head", {}),
        "mask_former": {"hidden_dim": 64, "nheads": 4, "num_object_queries": 6, "dec_layers": 5, "dim_feedforward": 32}
        | changes.get("mask_former", {}),
    }


def test_names_and_shapes_are_those_of_a_tao_checkpoint() -> None:
    state = make({"sem_seg_head": {"num_classes": 133}, "mask_former": {"dim_feedforward": 1024}}).state_dict()
    found = {name: (list(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in state.items()}
    assert len(found) == 481
    assert found == {entry["tao"]: (entry["shape"], entry["dtype"]) for entry in FACTS["entries"]}


def test_every_weight_goes_to_transformers_and_comes_back() -> None:
    state = make({"sem_seg_head": {"num_classes": 133}, "mask_former": {"dim_feedforward": 1024}}).state_dict()
    there = weights.to_transformers(state)
    assert there.keys() == {name for entry in FACTS["entries"] for name in entry["transformers"]}
    back = weights.from_transformers(there)
    assert back.keys() == {name for name in state if not name.endswith(weights.RECOMPUTED)}
    assert all(torch.equal(value, state[name]) for name, value in back.items())


@pytest.mark.parametrize("size", SIZES)
def test_the_swin_type_sets_width_depths_and_heads(size: str) -> None:
    with torch.device("meta"):
        backbone = make({"backbone": {"swin": {"type": size}}}).backbone
    assert backbone.num_features == tuple(SIZES[size].embed_dim << i for i in range(4))
    assert tuple(len(stage.blocks) for stage in backbone.layers) == SIZES[size].depths
    assert tuple(stage.blocks[0].attn.num_heads for stage in backbone.layers) == SIZES[size].num_heads


def test_an_explicit_value_wins_over_the_type() -> None:
    with torch.device("meta"):
        backbone = make({"backbone": {"swin": {"type": "base", "depths": [1, 1, 1, 1]}}}).backbone
    assert backbone.num_features[0] == SIZES["base"].embed_dim
    assert [len(stage.blocks) for stage in backbone.layers] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"swin": {"ape": True, "pretrain_img_size": 64}},
        {"swin": {"patch_norm": False, "qkv_bias": False, "qk_scale": 0.3}},
        {"swin": {"drop_rate": 0.1, "attn_drop_rate": 0.1, "mlp_ratio": 1.5}},
        {"sem_seg_head": {"norm": ""}, "mask_former": {"dropout": 0.2, "pre_norm": True}},
        {"sem_seg_head": {"convs_dim": 64}},
        {"mask_former": {"dec_layers": 1}},
        {"mask_former": {"dec_layers": 2}},
        {"mask_former": {"deep_supervision": False}},
    ],
)
def test_every_option_trains_and_every_weight_gets_a_gradient(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    spec = small(**changes)
    model = make(spec).train()
    prediction = model(torch.randn(2, 3, 45, 70))
    masks = torch.zeros(2, 12, 18, dtype=torch.bool)
    masks[0, :6], masks[1, 6:] = True, True
    targets = Targets([torch.tensor([1, 2])] * 2, [masks] * 2, torch.ones(2, 12, 18, dtype=torch.bool))
    criterion.build(load("train", {"model": spec}))(prediction, targets).total.backward()
    # With fewer than three decoder layers a level is not read, and its embedding stays as it is.
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without <= {"sem_seg_head.predictor.level_embed.weight", "sem_seg_head.predictor.query_embed.weight"} | {
        name for name in without if spec["mask_former"]["dec_layers"] < 4 and "input_proj" in name
    }
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_recomputation_changes_memory_and_nothing_else() -> None:
    torch.manual_seed(0)
    plain = make(small())
    images = torch.randn(2, 3, 48, 64)
    gradients = []
    for model in (plain, make(small(), activation_checkpoint=True), make(small(swin={"use_checkpoint": True}))):
        model.load_state_dict(plain.state_dict())
        torch.manual_seed(1)
        prediction = model.train()(images)
        (prediction.class_logits.sum() + prediction.mask_logits().sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def test_it_trains_in_bfloat16_under_autocast_close_to_float32() -> None:
    torch.manual_seed(0)
    spec = small(swin={"drop_path_rate": 0.5})
    model, loss = make(spec).train(), criterion.build(load("train", {"model": spec}))
    images = torch.randn(2, 3, 64, 70)
    masks = torch.rand(3, 16, 18) > 0.5
    targets = Targets([torch.tensor([1, 2, 4])] * 2, [masks] * 2, torch.ones(2, 16, 18, dtype=torch.bool))
    totals = []
    for enabled in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total = loss(model(images), targets).total
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        totals.append(total.item())
    assert totals[1] == pytest.approx(totals[0], rel=0.02)


def test_a_fresh_network_starts_where_the_original_does() -> None:
    torch.manual_seed(0)
    model = make({"sem_seg_head": {"num_classes": 20}})
    state = model.state_dict()
    attention = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn."
    steps = state[attention + "sampling_offsets.bias"].view(8, 3, 4, 2)
    # The first head looks right, 1 to 4 pixels.
    assert torch.equal(steps[0, :, :, 0], torch.tensor([[1.0, 2, 3, 4]] * 3))
    assert state[attention + "sampling_offsets.weight"].abs().max() == 0
    assert state[attention + "attention_weights.weight"].abs().max() == 0
    assert 0.015 < state["backbone.layers.2.blocks.3.mlp.fc1.weight"].std() < 0.025
    assert state["backbone.layers.2.blocks.3.mlp.fc1.bias"].abs().max() == 0
    assert state["sem_seg_head.predictor.query_feat.weight"].std() > 0.9
    with torch.no_grad():
        prediction = model.eval()(torch.randn(1, 3, 96, 96))
    assert prediction.class_logits.std() < 2
    assert prediction.mask_logits().isfinite().all()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"backbone": {"type": "efficientvit", "efficientvit": {"out_features": ["res4", "res5"]}}},
            "efficientvit.out_features = .*only",
        ),
        ({"backbone": {"swin": {"patch_size": 2}}}, "model.backbone.swin.patch_size = 2: only 4"),
        ({"backbone": {"swin": {"embed_dim": 50}}}, "must be divisible by"),
        ({"sem_seg_head": {"common_stride": 8}}, "model.sem_seg_head.common_stride = 8: only 4"),
        ({"sem_seg_head": {"norm": "BN"}}, "model.sem_seg_head.norm = 'BN'"),
        ({"sem_seg_head": {"convs_dim": 80}}, "model.sem_seg_head.convs_dim = 80: must be divisible by .* 32"),
        ({"mask_former": {"hidden_dim": 72, "nheads": 10}}, "model.mask_former.hidden_dim = 72"),
        (
            {"sem_seg_head": {"deformable_transformer_encoder_in_features": ["res4", "res5"]}},
            "deformable_transformer_encoder_in_features",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_key_value_and_rule(model: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(model)
