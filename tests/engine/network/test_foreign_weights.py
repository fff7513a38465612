"""Weights that other programs wrote: detectron2, transformers, TAO, published backbones."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from mask2former_mcp.engine import checkpoint, initial_weights, numpy_pickle, transformers_folder, usable
from mask2former_mcp.engine.model.network import Mask2Former, build
from mask2former_mcp.spec.experiment import Experiment, load

FACTS = json.loads((Path(__file__).parents[2] / "facts" / "weight-names-swin-tiny.json").read_text())
HEAD = "sem_seg_head.predictor.class_embed.weight"
TABLE = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"


def spec(*, classes: int = 5, **swin: Any) -> Experiment:
    sizes = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [2, 3, 4, 6], "window_size": 5, **swin}
    model = {
        "backbone": {"swin": sizes},
        "sem_seg_head": {"num_classes": classes, "convs_dim": 64, "mask_dim": 32, "transformer_enc_layers": 1},
        "mask_former": {"hidden_dim": 64, "nheads": 4, "num_object_queries": 6, "dec_layers": 2, "dim_feedforward": 32},
    }
    return load("train", {"model": model})


def network(seed: int = 0, **changes: Any) -> Mask2Former:
    torch.manual_seed(seed)
    return build(spec(**changes)).eval()


def in_detectron2s_way(model: Mask2Former) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in (HEAD, HEAD.replace("weight", "bias")):
        state[name] = state[name].roll(-1, 0)
    state["sem_seg_head.predictor.static_query.weight"] = state.pop("sem_seg_head.predictor.query_feat.weight")
    return {**state, "criterion.empty_weight": torch.ones(6)}


def same(a: Mask2Former, b: Mask2Former) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_detectron2_pickle_fills_the_whole_network(protocol: int, tmp_path: Path) -> None:
    source, model = network(1), network(2)
    content = {"model": {n: v.numpy() for n, v in in_detectron2s_way(source).items()}, "__author__": "someone"}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = initial_weights.load_weights(model, tmp_path / "model.pkl", strict=False)
    assert (loaded.missing, loaded.unknown, loaded.mismatched) == ([], [], {})
    assert loaded.layout == "detectron2 pickle"
    assert same(source, model)


def test_what_another_program_wrote_is_opened_for_use_where_every_weight_fits(tmp_path: Path) -> None:
    source = network(1)
    arrays = {n: v.numpy() for n, v in in_detectron2s_way(source).items() if not n.startswith("criterion.")}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}))
    transformers_folder.write(tmp_path / "folder", source, None, spec())
    for name in ("model.pkl", "folder"):
        known = usable.open_model(spec(), str(tmp_path / name))
        assert isinstance(known.model, Mask2Former)
        assert same(source, known.model)
        assert (known.num_classes, known.classes) == (5, None)
        with pytest.raises(ValueError, match="num_classes=5"):
            usable.open_model(spec(classes=7), str(tmp_path / name))


def test_a_detectron2_pth_has_no_object_last_as_well(tmp_path: Path) -> None:
    source, model = network(1), network(2)
    torch.save({"model": in_detectron2s_way(source), "iteration": 3}, tmp_path / "model.pth")
    initial_weights.load_weights(model, tmp_path / "model.pth")
    assert same(source, model)


class Mischief:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch run",)


@pytest.mark.parametrize("place", ["beside", "among"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights: dict[str, Any] = {"backbone.x": np.ones(2)}
    content = {"model": weights, "note": Mischief()} if place == "beside" else {"model": {**weights, "y": Mischief()}}
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"bad\.pkl is refused: it names (posix|os|nt)\.system"):
        initial_weights.load_weights(network(), tmp_path / "bad.pkl", strict=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"P0\n.",
        b"not a pickle",
        b"",
        pickle.dumps([1]),
        pickle.dumps({"model": {"a": 1}}),
        pickle.dumps({"model": {"a": torch.ones(1)}}),
    ],
)
def test_any_other_pickle_is_refused_with_its_name(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=r"odd\.pkl"):
        numpy_pickle.weights(tmp_path / "odd.pkl")


def test_position_tables_of_another_window_are_interpolated_and_reported(tmp_path: Path) -> None:
    source, model = network(1), network(2, window_size=7, classes=4)
    checkpoint.save(tmp_path / "a.pth", model=source, epoch=0, global_step=0)
    loaded = initial_weights.load_weights(model, tmp_path / "a.pth", strict=False)
    assert TABLE in loaded.interpolated
    assert len(loaded.interpolated) == 4
    old = source.state_dict()[TABLE].T.reshape(1, -1, 9, 9)
    wanted = F.interpolate(old, size=(13, 13), mode="bicubic", align_corners=False).reshape(-1, 169).T
    assert torch.equal(model.state_dict()[TABLE], wanted)
    assert model.state_dict()[TABLE.replace("bias_table", "index")].shape == (49, 49)
    report = loaded.report(tmp_path / "a.pth")
    assert report["mismatched"][HEAD] == {"file": [6, 64], "network": [5, 64]}
    assert json.loads(json.dumps(report)) == report


def test_a_published_backbone_of_another_window_and_image_is_interpolated(tmp_path: Path) -> None:
    source = network(1, ape=True, pretrain_img_size=32)
    model = network(2, ape=True, pretrain_img_size=48, window_size=4)
    published = {n: v for n, v in source.backbone.state_dict().items() if not n.startswith("norm")}
    published["absolute_pos_embed"] = (
        published["absolute_pos_embed"].flatten(2).transpose(1, 2)
    )  # as classifiers have it
    torch.save({"model": published}, tmp_path / "swin.pth")
    loaded = initial_weights.load_backbone(model, tmp_path / "swin.pth")
    assert len(loaded.interpolated) == 5
    wanted = F.interpolate(source.backbone.absolute_pos_embed, size=(12, 12), mode="bicubic", align_corners=False)
    assert torch.allclose(model.backbone.absolute_pos_embed, wanted)


def test_a_backbone_in_detectron2s_pickle_is_read_as_well(tmp_path: Path) -> None:
    source, model = network(1), network(2)
    arrays = {f"backbone.{n}": v.numpy() for n, v in source.backbone.state_dict().items() if not n.startswith("norm")}
    (tmp_path / "swin.pkl").write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}))
    loaded = initial_weights.load_backbone(model, tmp_path / "swin.pkl")
    assert not loaded.unknown
    assert torch.equal(model.backbone.patch_embed.proj.weight, source.backbone.patch_embed.proj.weight)


def reference() -> Mask2FormerForUniversalSegmentation:
    swin = SwinConfig(
        embed_dim=24,
        depths=[1, 1, 1, 1],
        num_heads=[2, 3, 4, 6],
        window_size=5,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=64,
        mask_feature_size=32,
        hidden_dim=64,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        dim_feedforward=32,
        encoder_feedforward_dim=1024,
        num_queries=6,
        num_labels=5,
    )
    return Mask2FormerForUniversalSegmentation(config).eval()


def equal_outputs(ours: Mask2Former, theirs: Mask2FormerForUniversalSegmentation) -> None:
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        prediction, expected = ours.double()(images), theirs.double()(images)
    classes = prediction.class_logits[-1].roll(-1, -1)
    for a, b in (
        (classes, expected.class_queries_logits),
        (prediction.mask_logits(), expected.masks_queries_logits),
    ):
        assert (a - b).abs().max() < 1e-6 * b.abs().max()


@pytest.mark.parametrize("shard", ["1GB", "1MB"])
def test_a_folder_that_transformers_saved_gives_equal_outputs(shard: str, tmp_path: Path) -> None:
    theirs, model = reference(), network(3)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    loaded = initial_weights.load_weights(model, tmp_path)
    assert loaded.layout == "transformers folder"
    equal_outputs(model, theirs)


def test_transformers_loads_the_folder_that_we_write_with_equal_outputs(tmp_path: Path) -> None:
    model = network(4)
    transformers_folder.write(tmp_path, model, None, spec())
    theirs, info = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert set(info["missing_keys"]) <= {"criterion.empty_weight"}
    equal_outputs(model, theirs.eval())
    again = network(5)
    initial_weights.load_weights(again, tmp_path)
    assert same(again.float(), model.float())


@pytest.mark.parametrize("swin", [{"ape": True}, {"patch_norm": False}])
def test_what_transformers_cannot_be_is_refused_and_not_written(swin: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="transformers"):
        transformers_folder.write(tmp_path / "out", network(**swin), None, spec(**swin))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_ours_has_the_names_and_shapes_that_tao_loads(tmp_path: Path) -> None:
    whole = {"sem_seg_head": {"num_classes": 133}, "mask_former": {"dim_feedforward": 1024}}
    model = build(load("train", {"model": whole}))
    checkpoint.save(tmp_path / "a.pth", model=model, epoch=2, global_step=7)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    found = {name: list(value.shape) for name, value in content["state_dict"].items()}
    assert found == {"model." + entry["tao"]: entry["shape"] for entry in FACTS["entries"]}
    lightning = ("epoch", "global_step", "pytorch-lightning_version", "optimizer_states", "lr_schedulers")
    assert all(field in content for field in lightning)
    model.load_state_dict({n.removeprefix("model."): v for n, v in content["state_dict"].items()}, strict=True)
