"""`quantize` of a tiny trained network, and what can be done with its output."""

import importlib.util
import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mask2former_mcp.engine import checkpoint, device, export, onnx_graph, session, trained, usable
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
    """A semantic ONNX file of 64 x 64, batch 1."""
    file = tmp_path_factory.mktemp("graph") / "model.onnx"
    spec = load("evaluate", {**tiny(model__mode="semantic"), "evaluate": {"checkpoint": str(weights)}})
    known = trained.open_checkpoint(spec, str(weights))
    export.write_onnx(export.Exportable(known.model, "semantic", 24).eval(), file, 1, (64, 64), export.LEAST_OPSET)
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
    running = usable.open_model(spec, str(file)).model
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(plain(image).class_logits, running(image).class_logits, atol=1e-3, rtol=1e-3)
    name = next(iter(scales)).removesuffix(".weight")
    assert type(running.get_submodule(name).weight.data) is not torch.Tensor
    assert type(plain.get_submodule(name).weight.data) is torch.Tensor


def test_a_checkpoint_with_8_bit_weights_is_exported_in_float32_and_says_so(
    tiny: Spec, weights: Path, tmp_path: Path
) -> None:
    spec = tiny(model__mode="semantic", dataset__val__panoptic_json="")
    assert act("quantize", tmp_path, spec, f"quantize.model_path={weights}") == 0
    file = tmp_path / "quantize" / "quantized_model_torchao.pth"
    size = ("export.input_height=64", "export.input_width=64", "export.batch_size=1")
    told = (f"export.checkpoint={file}", f"export.onnx_file={tmp_path / 'model.onnx'}", *size)
    assert act("export", tmp_path, spec, *told) == 0
    written = json.loads((tmp_path / "export" / "report.json").read_text())
    assert written["quantized_by"] == "torchao"
    assert written["max_difference"] < 1e-3
    kinds = {initializer.data_type for initializer in onnx.load(str(tmp_path / "model.onnx")).graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert any("multiplied out" in line["message"] for line in lines(tmp_path, "export"))
    assert act("export", tmp_path / "b", spec, *told, "export.format=transformers") == 0
    assert any("full float32 again" in line["message"] for line in lines(tmp_path / "b", "export"))
    state = load_file(tmp_path / "b" / "export" / "transformers" / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}


def static(backend: str, model: Path, shapes: Path, algorithm: str = "max", **settings: Any) -> dict[str, Any]:
    """The keys of a static quantization."""
    block = {"backend": backend, "mode": "static_ptq", "algorithm": algorithm, "model_path": str(model), **settings}
    return {"quantize": block, "dataset__quant_calibration_dataset__images_dir": str(shapes / "train" / "images")}


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in packages else there(name, *a))


def quantized_nodes(file: Path) -> set[str]:
    """Nodes whose weight is stored in 8 bits."""
    graph = onnx.load(str(file)).graph
    stored = {initializer.name for initializer in graph.initializer}
    weights = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored}
    return {node.name for node in graph.node if weights & set(node.input)}


@pytest.mark.parametrize("library", ["modelopt.onnx", "onnxruntime's static quantization"])
def test_a_graph_is_quantized_with_calibration_images_but_for_the_modules_named(
    tiny: Spec, graph: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    skipped = ["backbone.layers.0", "sem_seg_head.pixel_decoder.*", "node_linear_1?"]
    spec = tiny(model__mode="semantic", **static("modelopt.onnx", graph, shapes, skip_names=skipped))
    if library == "modelopt.onnx":  # alone in its process, as a job is: it changes onnxruntime's quantization
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        told = ["quantize", "-e", str(tmp_path / "spec.yaml"), f"results_dir={tmp_path}", "quantize.device=cpu"]
        subprocess.run([sys.executable, "-m", "mask2former_mcp.engine", *told], check=True, timeout=200)
    else:
        hide(monkeypatch, "modelopt")
        assert act("quantize", tmp_path, spec) == 0
    file = tmp_path / "quantize" / "quantized_model.onnx"
    modules = {name: module for name, (_, module) in onnx_graph.nodes(onnx.load(str(graph))).items()}
    quantized = {modules[name] for name in quantized_nodes(file)}
    assert any(module.startswith("backbone.layers.1.") for module in quantized)
    assert any(module.startswith("sem_seg_head.predictor.") for module in quantized)
    assert not any(module.startswith(("backbone.layers.0.", "sem_seg_head.pixel_decoder.")) for module in quantized)
    assert not any(name.startswith("node_linear_1") and len(name) == 14 for name in quantized_nodes(file))
    found = report(tmp_path)
    assert f"8-bit Q/DQ graph ({library}, max), 8 calibration images" in found["how"]
    assert found["after"]["weight_bytes"] < 0.75 * found["before"]["weight_bytes"]
    assert abs(found["drop"]["mIoU"]) < 0.3
    assert act("evaluate", tmp_path, spec, f"evaluate.checkpoint={file}") == 0
    assert act("inference", tmp_path, spec, f"inference.checkpoint={file}") == 0


@pytest.mark.parametrize(
    ("algorithm", "mode", "what"),
    [
        ("max", "int8", "8-bit Q/DQ graph"),
        ("entropy", "int8", "8-bit Q/DQ graph"),
        ("awq_clip", "int4", "4-bit weights"),
        ("awq_lite", "int4", "4-bit weights"),
        ("awq_full", "int4", "4-bit weights"),
        ("rtn_dq", "int4", "4-bit weights"),
    ],
)
def test_nvidias_library_is_asked_for_a_mode_that_has_the_algorithm(
    tiny: Spec, graph: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    algorithm: str, mode: str, what: str,
) -> None:  # fmt: skip
    asked: dict[str, Any] = {}

    def library(onnx_path: str, output_path: str, **settings: Any) -> None:
        asked.update(settings)
        shutil.copy(onnx_path, output_path)

    monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", types.SimpleNamespace(quantize=library))
    settings = static("modelopt.onnx", graph, shapes, algorithm, backend_kwargs={"simplify": True})
    assert act("quantize", tmp_path, tiny(model__mode="semantic", dataset__val__panoptic_json="", **settings)) == 0
    assert (asked["quantize_mode"], asked["calibration_method"]) == (mode, algorithm)
    assert (asked["high_precision_dtype"], asked["calibration_eps"], asked["simplify"]) == ("fp32", ["cpu"], True)
    assert report(tmp_path)["how"] == f"{what} (modelopt.onnx, {algorithm}), 8 calibration images"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"skip_names": ["backbone", "nose.*"]}, "'nose.*' is no part of this network"),
        ({"algorithm": "minmax"}, "modelopt.onnx has max, entropy, awq_clip"),
        ({"algorithm": "awq_clip"}, "needs the package nvidia-modelopt[onnx]"),
        ({"layers": [{"module_name": "backbone"}]}, "read by quantize.backend = torchao only"),
    ],
)
def test_what_a_graph_cannot_have_is_refused(
    tiny: Spec, graph: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], text: str,
) -> None:  # fmt: skip
    hide(monkeypatch, "modelopt")
    settings = static("modelopt.onnx", graph, shapes)
    settings["quantize"] |= changes
    assert act("quantize", tmp_path, tiny(model__mode="semantic", **settings)) == 1
    assert text in lines(tmp_path)[-1]["message"]


def test_the_device_of_the_spec_is_obeyed_where_there_are_gpus(
    tiny: Spec, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert act("quantize", tmp_path, tiny(dataset__val__panoptic_json=""), f"quantize.model_path={weights}") == 0
    assert device.named("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="this machine shows 2"):
        device.named("cuda:2")


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
        (["quantize.skip_names=['nose']"], "'nose' is no part of this network"),
        (["quantize.layers=[{module_name: nose}]"], "quantize.layers: 'nose' is no part"),
        (["quantize.layers=[{module_name: backbone, dtype: fp4}]"], "fp4"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_set(
    tiny: Spec, weights: Path, tmp_path: Path, overrides: list[str], text: str
) -> None:
    assert act("quantize", tmp_path, tiny(), f"quantize.model_path={weights}", *overrides) == 1
    assert text in lines(tmp_path)[-1]["message"]


def test_a_missing_package_is_named(tiny: Spec, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "torchao", "modelopt")
    assert act("quantize", tmp_path / "a", tiny(), f"quantize.model_path={weights}") == 1
    assert "pip install torchao" in lines(tmp_path / "a")[-1]["message"]
    asked = ("quantize.backend=modelopt.pytorch", "quantize.mode=static_ptq", "quantize.algorithm=max")
    assert act("quantize", tmp_path / "b", tiny(), f"quantize.model_path={weights}", *asked) == 1
    assert "pip install nvidia-modelopt" in lines(tmp_path / "b")[-1]["message"]


@pytest.mark.parametrize(
    ("algorithm", "what"), [("max", "8-bit weights and activations"), ("awq_lite", "4-bit weights")]
)
def test_modelopt_simulates_static_quantization(
    tiny: Spec, weights: Path, shapes: Path, tmp_path: Path, algorithm: str, what: str
) -> None:
    settings = static("modelopt.pytorch", weights, shapes, algorithm, skip_names=["backbone.layers.0", "*.mask_embed"])
    spec = tiny(**settings)
    assert act("quantize", tmp_path, spec) == 0
    assert report(tmp_path)["how"] == f"{what}, simulated (modelopt.pytorch, {algorithm}), 8 calibration images"
    file = tmp_path / "quantize" / "quantized_model_modelopt.pytorch.pth"
    noted = checkpoint.quantization(torch.load(file, weights_only=True))
    names = {name for name in noted["ranges"] if name.endswith("_amax") or "pre_quant_scale" in name}
    assert any(name.startswith("backbone.layers.1.") for name in names)
    assert not any(name.startswith("backbone.layers.0.") or ".mask_embed." in name for name in names)
    assert act("evaluate", tmp_path, spec, f"evaluate.checkpoint={file}") == 0
    again = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())["overall"]
    assert again["mIoU"] == pytest.approx(report(tmp_path)["after"]["metrics"]["mIoU"], abs=1e-4)
    assert act("export", tmp_path, spec, f"export.checkpoint={file}", f"export.onnx_file={tmp_path / 'm.onnx'}") == 1
    assert "which an export would lose" in lines(tmp_path, "export")[-1]["message"]
