"""Checkpoint files: their layout, what may be in them, and what is said when one does not fit."""

import argparse
import os
import pickle
import random
import resource
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mask2former_mcp.engine import checkpoint, initial_weights, random_state
from mask2former_mcp.engine.model.network import Mask2Former, build
from mask2former_mcp.spec.experiment import load

SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [2, 3, 4, 6], "window_size": 5, "mlp_ratio": 1.0}


def network(*, classes: int = 5, queries: int = 6, hidden: int = 64, **swin: object) -> Mask2Former:
    spec = {
        "backbone": {"swin": {**SWIN, **swin}},
        "sem_seg_head": {"num_classes": classes, "convs_dim": 32, "mask_dim": 16, "transformer_enc_layers": 1},
        "mask_former": {
            "hidden_dim": hidden,
            "nheads": 4,
            "num_object_queries": queries,
            "dec_layers": 2,
            "dim_feedforward": 32,
        },
    }
    return build(load("train", {"model": spec}))


def everything_in(value: Any) -> set[type]:
    if isinstance(value, dict):
        return {dict} | {kind for pair in value.items() for item in pair for kind in everything_in(item)}
    if isinstance(value, list | tuple):
        return {type(value)} | {kind for item in value for kind in everything_in(item)}
    return {type(value)}


def trained(model: Mask2Former) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    model(torch.randn(1, 3, 64, 64)).class_logits.sum().backward()
    optimizer.step()
    scheduler.step()
    return optimizer, scheduler


def test_a_checkpoint_holds_only_tensors_and_plain_values_in_lightnings_layout(tmp_path: Path) -> None:
    model = network()
    optimizer, scheduler = trained(model)
    path = tmp_path / checkpoint.file_name(3, 120)
    checkpoint.save(
        path,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        epoch=3,
        global_step=120,
        rng=random_state.snapshot(),
        metrics={"mIoU": np.float64(0.5), "count": np.int64(3)},
        hyper_parameters={"model": {"backbone": {"type": "swin"}}, "sizes": (1, 2)},
    )

    assert path.name == "model_epoch_003_step_00120.pth"
    assert checkpoint.parse_name(path.name) == (3, 120)
    content = torch.load(path, weights_only=True)
    assert everything_in(content) <= {dict, list, tuple, str, int, float, bool, type(None), Tensor}
    for key in ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "optimizer_states", "lr_schedulers"):
        assert key in content
    assert content["state_dict"].keys() == {"model." + name for name in model.state_dict()}
    optimizer.load_state_dict(content["optimizer_states"][0])
    scheduler.load_state_dict(content["lr_schedulers"][0])
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_latest_is_a_link_to_the_last_one_and_nothing_else_is_left(tmp_path: Path) -> None:
    model = network()
    for epoch in range(2):
        checkpoint.save(tmp_path / checkpoint.file_name(epoch, epoch), model=model, epoch=epoch, global_step=epoch)
    latest = tmp_path / checkpoint.LATEST
    assert os.readlink(latest) == "model_epoch_001_step_00001.pth"
    assert checkpoint.load(latest)["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_value_that_is_neither_is_refused_with_its_place_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\['hyper_parameters'\]\['folder'\] is a PosixPath"):
        checkpoint.save(
            tmp_path / "a.pth", model=network(), epoch=0, global_step=0, hyper_parameters={"folder": Path("/x")}
        )
    assert not list(tmp_path.iterdir())


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    model, other = network(), network()
    path = tmp_path / "a.pth"
    checkpoint.save(path, model=model, epoch=0, global_step=0)
    loaded = initial_weights.load_weights(other, path)
    assert (loaded.missing, loaded.unknown, loaded.kept_fresh) == ([], [], [])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("difference", "fix"),
    [
        ({"classes": 7}, "Set model.sem_seg_head.num_classes=7"),
        ({"queries": 9}, "Set model.mask_former.num_object_queries=9"),
        ({"hidden": 128}, "its queries are 128 wide, not 64. Set model.mask_former.hidden_dim=128"),
        ({"window_size": 4}, "Set model.backbone.swin.window_size=4"),
        ({"embed_dim": 48}, "Set model.backbone.swin.embed_dim=48"),
        ({"embed_dim": 48}, r"Of another shape are \d+ tensors: backbone\.patch_embed\.proj\.weight, .*, \.\.\.\.$"),
        ({"classes": 7}, r"are 2 tensors: sem_seg_head\.predictor\.class_embed\.bias, \S+\.class_embed\.weight\.$"),
        ({"depths": [1, 1, 2, 1]}, "architecture keys"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_with_the_value_it_needs(
    difference: dict[str, Any], fix: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pth"
    checkpoint.save(path, model=network(**difference), epoch=0, global_step=0)
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=fix):
        initial_weights.load_weights(model, path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fine_tuning_on_other_classes_takes_all_but_the_class_head(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    source, model = network(classes=7), network(classes=5)
    checkpoint.save(path, model=source, epoch=0, global_step=0)
    loaded = initial_weights.load_weights(model, path, strict=False)
    assert loaded.kept_fresh == ["sem_seg_head.predictor.class_embed.bias", "sem_seg_head.predictor.class_embed.weight"]
    assert torch.equal(model.backbone.patch_embed.proj.weight, source.backbone.patch_embed.proj.weight)


def test_a_published_swin_file_fills_the_backbone(tmp_path: Path) -> None:
    source, model = network(), network()
    published = {name: value for name, value in source.backbone.state_dict().items() if not name.startswith("norm")}
    published |= {"norm.weight": torch.ones(192), "norm.bias": torch.ones(192), "head.weight": torch.ones(10, 192)}
    published["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    torch.save({"model": published}, tmp_path / "swin.pth")
    loaded = initial_weights.load_backbone(model, tmp_path / "swin.pth")
    assert loaded.missing == [f"norm{i}.{leaf}" for i in range(4) for leaf in ("bias", "weight")]
    assert not loaded.unknown
    assert torch.equal(
        model.backbone.layers[2].blocks[0].attn.qkv.weight, source.backbone.layers[2].blocks[0].attn.qkv.weight
    )
    with pytest.raises(ValueError, match="embed_dim=24"):
        initial_weights.load_backbone(network(embed_dim=48), tmp_path / "swin.pth")


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        checkpoint.load(tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"state_dict": print}, protocol=2))
    torch.save({"state_dict": {}}, tmp_path / "nothing.pth")
    torch.save({"backbone.unknown": torch.ones(1)}, tmp_path / "other.pth")
    for name in ("text", "empty", "code", "nothing", "other"):
        with pytest.raises(ValueError, match=rf"{name}\.pth"):
            initial_weights.load_weights(network(), tmp_path / f"{name}.pth", strict=False)


def test_foreign_objects_beside_the_weights_are_neither_run_nor_in_the_way(tmp_path: Path) -> None:
    class_of_another_program = type(
        "DictConfig", (), {"__module__": "omegaconf_dictconfig", "__reduce__": reduce_to_exit}
    )
    module = types.ModuleType("omegaconf_dictconfig")
    module.DictConfig, module.leave = class_of_another_program, leave  # type: ignore[attr-defined]
    leave.__module__ = "omegaconf_dictconfig"
    sys.modules["omegaconf_dictconfig"] = module
    model = network()
    state = {"model." + name: value for name, value in model.state_dict().items()}
    configuration = {"spec": class_of_another_program(), "space": argparse.Namespace(a=1, b=[torch.ones(1)])}
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": configuration}, tmp_path / "tao.pth")
    del sys.modules["omegaconf_dictconfig"]

    content = checkpoint.load(tmp_path / "tao.pth")
    assert content["epoch"] == 3
    assert {type(value) for value in content["hyper_parameters"].values()} == {checkpoint.Inert}
    assert not initial_weights.load_weights(network(), tmp_path / "tao.pth").missing


def leave(reason: str) -> None:
    raise AssertionError(f"something in the file was run: {reason}")


def reduce_to_exit(_: object) -> tuple[Any, tuple[str]]:
    return leave, ("at loading",)


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    np.random.standard_normal()
    checkpoint.save(tmp_path / "a.pth", model={}, epoch=0, global_step=0, rng=random_state.snapshot())

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.standard_normal()), float(torch.rand(()))

    first = draw()
    draw()
    random_state.restore(checkpoint.load(tmp_path / "a.pth")["rng"])
    assert draw() == first


def test_a_file_that_does_not_fit_leaves_the_earlier_one_and_says_so(tmp_path: Path) -> None:
    first = tmp_path / checkpoint.file_name(0, 1)
    checkpoint.save(first, model={"w": torch.zeros(10)}, epoch=0, global_step=1)
    second = tmp_path / checkpoint.file_name(0, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))  # a full disk fails in the same place
    try:
        with pytest.raises(OSError, match=r"step_00002.*MiB are free.*make room and resume"):
            checkpoint.save(second, model={"w": torch.zeros(1 << 20)}, epoch=0, global_step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint.LATEST, first.name]
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["global_step"] == 1
