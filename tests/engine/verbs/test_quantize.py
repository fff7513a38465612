"""`quantize` of a tiny trained network, and what can be done with its output."""

import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml

from mask2former_mcp.engine import checkpoint, export, onnx_graph, session, trained
from mask2former_mcp.engine.graph import OUTPUTS
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]


def act(action: str, folder: Path, spec: dict[str, Any], *overrides: str) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return session.run(action, folder / "spec.yaml", [f"results_dir={folder}", "quantize.device=cpu", *overrides])


def lines(folder: Path, action: str = "quantize") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / action / "status.json").read_text().splitlines()]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "quantize" / "report.json").read_text())


@pytest.fixture(scope="module")
def graph(tiny: Spec, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A semantic ONNX file of 64 x 64, batch 1, by the quick exporter."""
    file = tmp_path_factory.mktemp("graph") / "model.onnx"
    spec = load("evaluate", {**tiny(model__mode="semantic"), "evaluate": {"checkpoint": str(weights)}})
    known = trained.open_checkpoint(spec, str(weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            export.Exportable(known.model, "semantic", 24).eval(), (torch.zeros(1, 3, 64, 64),), str(file),
            input_names=["inputs"], output_names=list(OUTPUTS["semantic"]), opset_version=18, dynamo=False,
        )  # fmt: skip
    assert known.classes is not None
    onnx_graph.name_classes(file, known.classes)
    return file


def test_weight_only_quantization_is_smaller_measured_and_usable(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    assert act("quantize", tmp_path, tiny(), f"quantize.model_path={weights}") == 0
    file = tmp_path / "quantize" / "quantized_model_torchao.pth"
    found = report(tmp_path)
    assert found["after"]["weight_bytes"] < 0.7 * found["before"]["weight_bytes"]
    assert found["after"]["latency_ms"] > 0
    assert set(found["drop"]) == {"mIoU", "PQ", "AP"}
    assert abs(found["drop"]["mIoU"]) < 0.05
    kpi = next(line["kpi"] for line in lines(tmp_path) if line["message"] == "Test metrics generated.")
    assert kpi["mIoU"] == found["after"]["metrics"]["mIoU"]
    assert {"size_mb_before", "size_mb_after", "latency_ms_before", "latency_ms_after", "mIoU_drop"} <= set(kpi)
    assert act("evaluate", tmp_path, tiny(), f"evaluate.checkpoint={file}") == 0
    again = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())["overall"]
    assert again["mIoU"] == pytest.approx(found["after"]["metrics"]["mIoU"], abs=1e-4)
    assert act("inference", tmp_path, tiny(), f"inference.checkpoint={file}") == 0
    assert len(list((tmp_path / "inference").glob("*.jpg"))) == 4


def test_a_quantized_checkpoint_opens_without_the_library_with_the_same_numbers(
    tiny: Spec, weights: Path, tmp_path: Path
) -> None:
    assert act("quantize", tmp_path, tiny(), f"quantize.model_path={weights}", "quantize.skip_names=[backbone]") == 0
    file = tmp_path / "quantize" / "quantized_model_torchao.pth"
    content = torch.load(file, weights_only=True)
    scales = checkpoint.scales(content)
    assert scales
    assert not any(name.startswith("backbone") for name in scales)
    spec = load("evaluate", {**tiny(), "evaluate": {"checkpoint": str(file)}})
    plain = trained.open_checkpoint(spec, str(file)).model  # what export starts from
    running = trained.open_model(spec, str(file)).model
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(plain(image).class_logits, running(image).class_logits, atol=1e-3, rtol=1e-3)
    name = next(iter(scales)).removesuffix(".weight")
    assert type(running.get_submodule(name).weight.data) is not torch.Tensor
    assert type(plain.get_submodule(name).weight.data) is torch.Tensor


def test_a_graph_is_quantized_with_calibration_images(tiny: Spec, graph: Path, shapes: Path, tmp_path: Path) -> None:
    spec = tiny(
        model__mode="semantic",
        quantize={"backend": "modelopt.onnx", "mode": "static_ptq", "algorithm": "max", "model_path": str(graph)},
        dataset__quant_calibration_dataset__images_dir=str(shapes / "train" / "images"),
    )
    assert act("quantize", tmp_path, spec) == 0
    file = tmp_path / "quantize" / "quantized_model.onnx"
    kinds = {node.op_type for node in onnx.load(str(file)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    found = report(tmp_path)
    assert "8 calibration images" in found["how"]
    assert found["after"]["weight_bytes"] < found["before"]["weight_bytes"]
    assert abs(found["drop"]["mIoU"]) < 0.3
    assert act("evaluate", tmp_path, spec, f"evaluate.checkpoint={file}") == 0
    assert act("inference", tmp_path, spec, f"inference.checkpoint={file}") == 0


def test_without_validation_data_only_size_and_time_are_told(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    spec = tiny(dataset__val__panoptic_json="")
    assert act("quantize", tmp_path, spec, f"quantize.model_path={weights}") == 0
    assert "panoptic_json is empty" in report(tmp_path)["why_no_metrics"]
    assert report(tmp_path)["drop"] == {}


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["quantize.mode=static_ptq"], "set quantize.mode=weight_only_ptq"),
        (["quantize.backend=modelopt.onnx", "quantize.mode=static_ptq"], "takes an ONNX file"),
        (["quantize.algorithm=max"], "torchao's is minmax"),
        (["quantize.skip_names=['*']"], "leave no linear layer"),
        (["quantize.layers=[{module_name: backbone, dtype: fp4}]"], "fp4"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_set(
    tiny: Spec, weights: Path, tmp_path: Path, overrides: list[str], text: str
) -> None:
    assert act("quantize", tmp_path, tiny(), f"quantize.model_path={weights}", *overrides) == 1
    assert text in lines(tmp_path)[-1]["message"]


def test_a_missing_package_is_named(tiny: Spec, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    gone = {"torchao", "modelopt"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else there(name, *a))
    assert act("quantize", tmp_path / "a", tiny(), f"quantize.model_path={weights}") == 1
    assert "pip install torchao" in lines(tmp_path / "a")[-1]["message"]
    static = ("quantize.backend=modelopt.pytorch", "quantize.mode=static_ptq", "quantize.algorithm=max")
    assert act("quantize", tmp_path / "b", tiny(), f"quantize.model_path={weights}", *static) == 1
    assert "pip install nvidia-modelopt" in lines(tmp_path / "b")[-1]["message"]


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is None, reason="nvidia-modelopt is not part of any extra")
def test_modelopt_simulates_static_quantization(tiny: Spec, weights: Path, shapes: Path, tmp_path: Path) -> None:
    spec = tiny(
        quantize={"backend": "modelopt.pytorch", "mode": "static_ptq", "algorithm": "max", "model_path": str(weights)},
        dataset__quant_calibration_dataset__images_dir=str(shapes / "train" / "images"),
    )
    assert act("quantize", tmp_path, spec) == 0
    file = tmp_path / "quantize" / "quantized_model_modelopt.pytorch.pth"
    torch.load(file, weights_only=True)
    assert act("evaluate", tmp_path, spec, f"evaluate.checkpoint={file}") == 0
    again = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())["overall"]
    assert again["mIoU"] == pytest.approx(report(tmp_path)["after"]["metrics"]["mIoU"], abs=1e-4)
    assert act("export", tmp_path, spec, f"export.checkpoint={file}", f"export.onnx_file={tmp_path / 'm.onnx'}") == 1
    assert "which an export would lose" in lines(tmp_path, "export")[-1]["message"]
    assert "modelopt" in sys.modules
