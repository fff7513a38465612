"""`gen_trt_engine`, and engines in `evaluate` and `inference`, against a small fake of the `tensorrt` package.

The fake has the calls of TensorRT 10 that the engine makes, refuses wrong uses of them that are easy to make, and runs
the graph in onnxruntime. No test here has seen a GPU.
"""

import ctypes
import importlib.machinery
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from onnx import helper

from mask2former_mcp.engine import export, onnx_graph, session, trained
from mask2former_mcp.engine.graph import OUTPUTS
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]


class Layer:
    """TensorRT numbers a name that it has given already, and notes the node that a layer was made of."""

    num_outputs = 1

    def __init__(self, node: str, kind: str) -> None:
        self.name, self.metadata, self.kind, self.precision = f"{node}_7", f"[ONNX Layer: {node}]", kind, None

    def get_output(self, index: int) -> Any:
        return types.SimpleNamespace(dtype=self.kind)


class Network:
    def __init__(self, typed: bool) -> None:
        self.typed, self.layers = typed, []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> Any:
        return types.SimpleNamespace(name=("inputs",)[index])

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


class Config:
    def __init__(self) -> None:
        self.flags, self.limits, self.profiles, self.cache = [], {}, [], None
        self.set_flag, self.add_optimization_profile = self.flags.append, self.profiles.append
        self.set_memory_pool_limit = self.limits.__setitem__

    def create_timing_cache(self, content: bytes) -> Any:
        return types.SimpleNamespace(serialize=lambda: content + b"timed;")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return self.cache


class Profile:
    def set_shape(self, name: str, least: tuple[int, ...], usual: tuple[int, ...], most: tuple[int, ...]) -> None:
        assert least <= usual <= most
        self.name, self.shapes = name, [list(least), list(usual), list(most)]


class Builder:
    made: dict[str, Any] = {}  # noqa: RUF012 - what the last build was asked for

    def __init__(self, logger: Any) -> None: ...

    def create_network(self, flags: int) -> Network:
        return Network(typed=flags == 2)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        assert not (network.typed and config.flags), "a strongly typed network takes no precision flags"
        Builder.made = {"network": network, "config": config}
        return json.dumps({"onnx": Parser.path, "shapes": config.profiles[0].shapes}).encode()


class Parser:
    path, num_errors = "", 1

    def __init__(self, network: Network, logger: Any) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        Parser.path = path
        for node in onnx.load(path).graph.node:
            self.network.layers.append(Layer(node.name, "int64" if node.op_type == "Shape" else "fp32"))
        return "unreadable" not in path

    def get_error(self, index: int) -> str:
        return "no importer for this node"


class Engine:
    def __init__(self, content: dict[str, Any]) -> None:
        self.content, self.session = content, onnxruntime.InferenceSession(content["onnx"])
        self.names = ["inputs", *(output.name for output in self.session.get_outputs())]
        self.num_io_tensors = len(self.names)
        self.get_tensor_name = self.names.__getitem__

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "inputs" else "OUTPUT"

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        assert (name, profile) == ("inputs", 0)
        return self.content["shapes"]

    def get_tensor_dtype(self, name: str) -> str:
        return "int64" if name == "pred_classes" else "float32"

    def create_execution_context(self) -> "Context":
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses, self.shape = engine, {}, ()
        self.set_tensor_address = self.addresses.__setitem__

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        least, _, most = self.engine.content["shapes"]
        assert least[0] <= shape[0] <= most[0], "outside the profile"
        self.shape = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        images = np.zeros(self.shape, dtype=np.float32)
        return self.engine.session.run([name], {"inputs": images})[0].shape

    def execute_async_v3(self, stream: int) -> bool:
        size = int(np.prod(self.shape))
        floats = (ctypes.c_float * size).from_address(self.addresses["inputs"])
        images = np.ctypeslib.as_array(floats).reshape(self.shape)
        for name, value in zip(self.engine.names[1:], self.engine.session.run(None, {"inputs": images}), strict=True):
            ctypes.memmove(self.addresses[name], value.ctypes.data, value.nbytes)
        return True


class Runtime:
    def __init__(self, logger: Any) -> None: ...

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        return Engine(json.loads(content)) if content.startswith(b"{") else None


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    fake: Any = types.ModuleType("tensorrt")
    fake.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    fake.__version__, fake.float32, fake.float16, fake.nptype = "10.0-fake", "fp32", "fp16", np.dtype
    fake.Builder, fake.OnnxParser, fake.Runtime = Builder, Parser, Runtime
    fake.Logger = type("Logger", (), {"VERBOSE": 0, "WARNING": 1, "__init__": lambda self, level: None})
    fake.BuilderFlag = types.SimpleNamespace(FP16="FP16", OBEY_PRECISION_CONSTRAINTS="OBEY")
    fake.MemoryPoolType = types.SimpleNamespace(WORKSPACE="WORKSPACE")
    fake.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)  # a bit's place
    fake.TensorIOMode = types.SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture(scope="module")
def graphs(tiny: Spec, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ONNX files of 64 x 64: a semantic and a panoptic one of batch 2 by the quick exporter, a semantic one of any
    batch as `export` writes it, and one of 8 bits."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, mode in (("semantic", "semantic"), ("panoptic", "panoptic"), ("any", "semantic")):
        spec = load("evaluate", {**tiny(model__mode=mode), "evaluate": {"checkpoint": str(weights)}})
        known = trained.open_checkpoint(spec, str(weights))
        module, file = export.Exportable(known.model, mode, 24).eval(), folder / f"{name}.onnx"
        if name == "any":
            export.write_onnx(module, file, -1, (64, 64), export.LEAST_OPSET)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    module, (torch.zeros(2, 3, 64, 64),), str(file), input_names=["inputs"],
                    output_names=list(OUTPUTS[mode]), opset_version=18, dynamo=False,
                )  # fmt: skip
        assert known.classes is not None
        onnx_graph.name_classes(file, known.classes)
    nodes = [
        helper.make_node("QuantizeLinear", ["inputs", "scale"], ["small"]),
        helper.make_node("DequantizeLinear", ["small", "scale"], ["pred_masks"]),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 64, 64]) for name in _ENDS]
    scale = helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [0.1])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [scale])), folder / "quantized.onnx")
    return {name: folder / f"{name}.onnx" for name in ("semantic", "panoptic", "any", "quantized")}


_ENDS = ("inputs", "pred_masks")


def act(action: str, folder: Path, spec: dict[str, Any], *overrides: str) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return session.run(action, folder / "spec.yaml", [f"results_dir={folder}", *overrides])


def last(folder: Path, action: str = "gen_trt_engine") -> str:
    return json.loads((folder / action / "status.json").read_text().splitlines()[-1])["message"]


def built(folder: Path, onnx_file: Path, *overrides: str) -> int:
    own = [f"gen_trt_engine.onnx_file={onnx_file}", f"gen_trt_engine.trt_engine={folder / 'model.engine'}"]
    return act("gen_trt_engine", folder, {}, *own, *overrides)


def test_an_engine_is_built_as_the_spec_says(package: Any, graphs: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "timings"
    block = "gen_trt_engine.tensorrt"
    kept = f"{block}.layers_precision=['backbone.patch_embed:fp32','/model/predictor/input_proj.*/MatMul:fp16']"
    asked = (f"{block}.data_type=FP16", f"{block}.workspace_size=256", kept)
    assert built(tmp_path, graphs["semantic"], *asked, f"gen_trt_engine.timing_cache={cache}") == 0
    network, config = Builder.made["network"], Builder.made["config"]
    assert config.flags == ["FP16", "OBEY"]
    assert config.limits == {"WORKSPACE": 256 << 20}
    assert config.profiles[0].shapes == [[2, 3, 64, 64]] * 3  # the graph's own batch
    for layer in network.layers:
        name, found = layer.name, layer.precision
        if name.startswith("/model/backbone/patch_embed/"):
            assert found == (None if layer.kind == "int64" else "fp32"), name
        else:
            named = name.startswith("/model/predictor/input_proj.") and "/MatMul_" in name
            assert found == ("fp16" if named else None), name
    assert {None, "fp32", "fp16"} == {layer.precision for layer in network.layers}
    assert cache.read_bytes() == b"timed;"
    report = json.loads((tmp_path / "gen_trt_engine" / "report.json").read_text())
    assert report["tensorrt"] == "10.0-fake"
    (tmp_path / "model.engine").unlink()
    assert built(tmp_path, graphs["semantic"], f"gen_trt_engine.timing_cache={cache}") == 0
    assert cache.read_bytes() == b"timed;timed;"
    assert Builder.made["config"].flags == []


def test_a_graph_of_any_batch_gets_a_profile_of_three_sizes_and_runs_within_it(
    package: Any, tiny: Spec, graphs: dict[str, Path], tmp_path: Path
) -> None:
    block = "gen_trt_engine.tensorrt"
    sizes = (f"{block}.min_batch_size=1", f"{block}.opt_batch_size=2", f"{block}.max_batch_size=4")
    assert built(tmp_path, graphs["any"], *sizes) == 0
    assert Builder.made["config"].profiles[0].shapes == [[1, 3, 64, 64], [2, 3, 64, 64], [4, 3, 64, 64]]
    spec, engine = tiny(model__mode="semantic"), f"evaluate.trt_engine={tmp_path / 'model.engine'}"
    for folder, batch in (("one", 1), ("three", 3), ("beyond", 8)):
        assert act("evaluate", tmp_path / folder, spec, engine, f"evaluate.batch_size={batch}") == 0
    one, three, beyond = (
        json.loads((tmp_path / folder / "evaluate" / "metrics.json").read_text())["overall"]["mIoU"]
        for folder in ("one", "three", "beyond")
    )
    assert one == pytest.approx(three, abs=1e-6)
    assert one == pytest.approx(beyond, abs=1e-6)


def test_a_quantized_graph_chooses_its_arithmetic_itself(package: Any, graphs: dict[str, Path], tmp_path: Path) -> None:
    for asked in ("data_type=FP16", "layers_precision=['*:fp32']"):
        assert built(tmp_path, graphs["quantized"], f"gen_trt_engine.tensorrt.{asked}") == 1
        assert "says itself in which arithmetic" in last(tmp_path)
    assert built(tmp_path, graphs["quantized"]) == 0
    assert Builder.made["network"].typed
    report = json.loads((tmp_path / "gen_trt_engine" / "report.json").read_text())
    assert report["data_type"] == "as the quantized graph says"


def test_an_engine_is_built_on_the_gpu_of_the_spec(
    package: Any, graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert built(tmp_path, graphs["semantic"], "gen_trt_engine.gpu_id=1") == 0
    assert current == [1]
    assert built(tmp_path / "b", graphs["semantic"], "gen_trt_engine.gpu_id=2") == 1
    assert "this machine shows 2" in last(tmp_path / "b")


@pytest.mark.parametrize("mode", ["semantic", "panoptic"])
def test_an_engine_measures_and_predicts_like_its_graph(
    package: Any, tiny: Spec, graphs: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    assert built(tmp_path, graphs[mode]) == 0
    spec = tiny(model__mode=mode)
    for name, model in (("a", f"checkpoint={graphs[mode]}"), ("b", f"trt_engine={tmp_path / 'model.engine'}")):
        assert act("evaluate", tmp_path / name, spec, f"evaluate.{model}", "evaluate.batch_size=3") == 0
    one, two = (json.loads((tmp_path / x / "evaluate" / "metrics.json").read_text()) for x in ("a", "b"))
    assert one == two
    assert act("inference", tmp_path, spec, f"inference.trt_engine={tmp_path / 'model.engine'}") == 0
    assert len(list((tmp_path / "inference").glob("*.jpg"))) == 4


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["gen_trt_engine.batch_size=4"], "exported with 2"),
        (["gen_trt_engine.tensorrt.min_batch_size=3"], "not in order"),
        (["gen_trt_engine.tensorrt.layers_precision=['head:int8']"], "name:fp32 or name:fp16"),
        (["gen_trt_engine.tensorrt.layers_precision=['nose:fp16']"], "'nose' is no part of this network"),
    ],
)
def test_what_cannot_be_built_is_said(
    package: Any, graphs: dict[str, Path], tmp_path: Path, overrides: list[str], text: str
) -> None:
    assert built(tmp_path, graphs["semantic"], *overrides) == 1
    assert text in last(tmp_path)
    assert not (tmp_path / "model.engine").exists()


def test_the_words_of_the_parser_and_of_a_newer_version_are_passed_on(
    package: Any, graphs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "unreadable.onnx").write_bytes(graphs["semantic"].read_bytes())
    assert built(tmp_path, tmp_path / "unreadable.onnx") == 1
    assert "no importer for this node" in last(tmp_path)
    package.BuilderFlag = types.SimpleNamespace()
    assert built(tmp_path, graphs["semantic"], "gen_trt_engine.tensorrt.data_type=FP16") == 1
    assert "tensorrt<11" in last(tmp_path)


def test_an_engine_of_another_machine_says_what_to_do(package: Any, tiny: Spec, tmp_path: Path) -> None:
    (tmp_path / "other.engine").write_bytes(b"ptrt")
    spec = tiny(model__mode="semantic")
    assert act("evaluate", tmp_path, spec, f"evaluate.trt_engine={tmp_path / 'other.engine'}") == 1
    assert "Build it again" in last(tmp_path, "evaluate")


def test_without_the_package_the_package_and_the_container_are_named(
    tiny: Spec, graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorrt" else there(name, *a))
    assert built(tmp_path, graphs["semantic"]) == 1
    assert "package tensorrt" in last(tmp_path)
    assert "container (runtime=tao)" in last(tmp_path)
    assert act("inference", tmp_path, tiny(), f"inference.trt_engine={tmp_path / 'x.engine'}") == 1
    assert "package tensorrt" in last(tmp_path, "inference")
