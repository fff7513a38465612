"""A checkpoint as TAO's trainer writes it, through every verb that takes one; and ours as TAO's loader reads them."""

import collections
import json
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from torch import Tensor, nn

from mask2former_mcp.engine import checkpoint, session
from mask2former_mcp.engine.model.network import build
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]
FACTS = json.loads((Path(__file__).parents[2] / "facts" / "weight-names-swin-tiny.json").read_text())
LIGHTNING = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "optimizer_states", "lr_schedulers")


def act(action: str, folder: Path, spec: dict[str, Any], *overrides: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return session.run(action, folder / "spec.yaml", [f"results_dir={folder}", *overrides])


def kinds(names: Any) -> set[str]:
    """Names with `*` for each number: what a network of another depth has in common with Swin-T."""
    return {re.sub(r"\d+", "*", name) for name in names}


class DictConfig:
    """Pickles as OmegaConf's does: an object of its class, its content as the state."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content, self.metadata = content, collections.defaultdict(list)


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """While a file is written the class can be imported; whoever reads it later does not have the package."""
    module = types.ModuleType("omegaconf_dictconfig")
    module.DictConfig = DictConfig  # type: ignore[attr-defined]
    monkeypatch.setattr(DictConfig, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module
    monkeypatch.delitem(sys.modules, module.__name__, raising=False)


@pytest.fixture
def tao(weights: Path, tmp_path: Path, omegaconf: types.ModuleType) -> Path:
    """The weights of a trained network in the file that TAO's Lightning would have written."""
    state = dict(checkpoint.load(weights)["state_dict"])
    found = kinds(name.removeprefix("model.") for name in state) - {checkpoint.LOSS_WEIGHTS}
    listed = kinds(entry["tao"] for entry in FACTS["entries"])
    # The tiny network is narrower in the pixel decoder than after it, and TAO's defaults are not.
    assert found - listed == {f"sem_seg_head.predictor.input_proj.*.{leaf}" for leaf in ("weight", "bias")}
    assert listed <= found
    first = next(iter(state.values()))
    content = {
        "epoch": 9,
        "global_step": np.int64(360),
        "pytorch-lightning_version": "2.4.0",
        "state_dict": collections.OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 10, "completed": 9}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {"best_model_score": np.float64(0.5), "best_k_models": {}},
            "TAOStatusLogger": {"times": np.arange(3.0), "folder": Path("results")},
        },
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": first}}, "param_groups": [{}]}],
        "lr_schedulers": [{"milestones": collections.Counter([88, 96]), "gamma": 0.1, "_last_lr": [2e-4]}],
        "hparams_name": "cfg",
        "hparams_type": DictConfig,
        "hyper_parameters": {"cfg": DictConfig({"model": {"mode": "panoptic"}}), "lr": np.float32(2e-4)},
    }
    path = tmp_path / "model_epoch_009_step_00360.pth"
    torch.save(content, path)
    del sys.modules[omegaconf.__name__]
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(path, weights_only=True)  # what a plain reader says to it
    return path


def measured(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "evaluate" / "metrics.json").read_text())["overall"])


@pytest.mark.slow  # six verbs, one of which traces
def test_it_is_evaluated_exported_and_used_like_one_of_ours(
    tiny: Spec, weights: Path, tao: Path, tmp_path: Path, shapes: Path
) -> None:
    for name, path in (("ours", weights), ("tao", tao)):
        assert act("evaluate", tmp_path / name, tiny(), f"evaluate.checkpoint={path}") == 0
    assert measured(tmp_path / "tao") == measured(tmp_path / "ours")
    assert measured(tmp_path / "tao")["mIoU"] > 0.3
    table = json.loads((tmp_path / "tao" / "evaluate" / "metrics.json").read_text())["per_class"]
    assert {row["name"] for row in table} == {"disc", "box", "ground"}  # from the label map: the file has none

    assert act("inference", tmp_path / "tao", tiny(), f"inference.checkpoint={tao}") == 0
    pictures = tmp_path / "tao" / "inference"
    assert len(list(pictures.glob("*.jpg"))) == len(list((pictures / "panoptic").glob("*.png"))) == 4

    quantize = (f"quantize.model_path={tao}", "quantize.device=cpu")
    assert act("quantize", tmp_path / "tao", tiny(), *quantize) == 0
    assert (tmp_path / "tao" / "quantize" / "quantized_model_torchao.pth").stat().st_size < tao.stat().st_size

    onnx = tmp_path / "tao.onnx"
    sizes = ("export.input_width=64", "export.input_height=64", "model.mode=semantic")
    assert act("export", tmp_path / "tao", tiny(), f"export.checkpoint={tao}", f"export.onnx_file={onnx}", *sizes) == 0
    runtime = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    assert runtime.run(None, {"inputs": np.zeros((3, 3, 64, 64), np.float32)})[0].shape == (3, 3, 64, 64)


def test_training_starts_from_it_and_writes_what_tao_loads(tiny: Spec, tao: Path, tmp_path: Path) -> None:
    start = f"train.pretrained_model_path={tao}"
    assert act("train", tmp_path, tiny(train__is_dry_run=True, train__optim__lr=1e-9), start) == 0
    report = json.loads((tmp_path / "train" / "weights.json").read_text())
    assert report["skipped"] == report["missing"] == []
    assert report["mismatched"] == {}
    before, after = (checkpoint.load(path)["state_dict"] for path in (tao, tmp_path / "train" / checkpoint.LATEST))
    moved = max(float((before[name] - after[name]).abs().max()) for name in before if before[name].is_floating_point())
    assert moved < 1e-6
    # Lightning gives all of the state dict to the module, strictly; TAO's module holds the network and its loss.
    content = torch.load(tmp_path / "train" / checkpoint.LATEST, weights_only=True)
    assert set(LIGHTNING) <= content.keys()
    module = nn.Module()
    module.model = build(load("train", tiny()))
    module.criterion = nn.Module()
    module.criterion.register_buffer("empty_weight", torch.zeros(4))
    module.load_state_dict(content["state_dict"], strict=True)
    weight: Tensor = module.criterion.empty_weight
    assert weight.tolist() == pytest.approx([0.1, 1, 1, 1])


def test_other_classes_start_from_it_with_a_fresh_class_head(tiny: Spec, tao: Path, tmp_path: Path) -> None:
    more = tiny(train__is_dry_run=True, model__sem_seg_head__num_classes=5)
    assert act("train", tmp_path, more, f"train.pretrained_model_path={tao}") == 0
    report = json.loads((tmp_path / "train" / "weights.json").read_text())
    assert set(report["mismatched"]) == {f"sem_seg_head.predictor.class_embed.{leaf}" for leaf in ("weight", "bias")}


def test_it_has_no_run_that_could_be_resumed_and_says_what_to_set(tiny: Spec, tao: Path, tmp_path: Path) -> None:
    assert act("train", tmp_path, tiny(), f"train.resume_training_checkpoint_path={tao}") == 1
    assert "train.pretrained_model_path" in (tmp_path / "train" / "status.json").read_text().splitlines()[-1]


def test_a_file_that_lightning_itself_wrote_is_read_without_lightning_or_omegaconf() -> None:
    """Written by pytorch-lightning 2.5.5: a module of one linear layer and a loss, trained for two epochs of two steps,
    its configuration an OmegaConf of nested values; the callback's paths were shortened and its score is NumPy's."""
    path = Path(__file__).parents[2] / "facts" / "lightning-2.5.5-omegaconf-2.4.0.pth"
    content = checkpoint.load(path)
    assert {*LIGHTNING, "loops", "callbacks", "hyper_parameters"} <= content.keys()
    assert (content["epoch"], content["global_step"]) == (2, 4)
    assert {name: tuple(value.shape) for name, value in content["state_dict"].items()} == {
        "model.weight": (2, 3),
        "model.bias": (2,),
        checkpoint.LOSS_WEIGHTS: (3,),
    }
    assert isinstance(content["hyper_parameters"]["cfg"], checkpoint.Inert)
