"""A TensorRT engine from an ONNX file: FP32, FP16 or as a quantized graph says, one profile of batch sizes, a timing
cache.

The engine runs on the kind of GPU and with the TensorRT version that it was built with.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from mask2former_mcp.engine import device, module_names, onnx_graph, tensorrt_api
from mask2former_mcp.engine.onnx_graph import CLASSES
from mask2former_mcp.engine.status import StatusLog
from mask2former_mcp.engine.tensorrt_graph import classes_file
from mask2former_mcp.spec.actions import GenTrtEngine
from mask2former_mcp.spec.experiment import Experiment

MEGABYTE = 1 << 20
PRECISIONS = {"fp32": "float32", "fp16": "float16"}


def run(spec: Experiment, results_dir: Path) -> None:
    """Writes `gen_trt_engine.trt_engine` and `report.json`. Raises ModuleNotFoundError without the package,
    FileExistsError for an engine that is there already, ValueError for a graph that TensorRT cannot build."""
    settings = spec.gen_trt_engine
    source, target = Path(settings.onnx_file), Path(settings.trt_engine)
    if target.exists():
        raise FileExistsError(f"gen_trt_engine.trt_engine = {target} exists already: choose another name")
    if not source.is_file():
        raise FileNotFoundError(f"gen_trt_engine.onnx_file = {source}: there is no such file")
    trt = tensorrt_api.load("gen_trt_engine")
    status = StatusLog(results_dir)
    graph = onnx.load(str(source), load_external_data=False)
    shapes = batch_shapes(settings, graph)
    typed = _is_quantized(graph)
    if typed and (settings.tensorrt.data_type != "FP32" or settings.tensorrt.layers_precision):
        raise ValueError(
            f"gen_trt_engine.onnx_file = {source} is quantized, and says itself in which arithmetic each of its parts"
            " runs: set gen_trt_engine.tensorrt.data_type=FP32 and layers_precision=[]"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(device.gpus([settings.gpu_id], 1)[0])  # TensorRT builds on the current one
    status.running(f"Building with TensorRT {trt.__version__}; this takes minutes.")
    content = build(trt, settings, graph, shapes, typed=typed)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(content)
    partial.replace(target)
    named = {entry.key: entry.value for entry in graph.metadata_props}
    if CLASSES in named:
        classes_file(target).write_text(named[CLASSES] + "\n", encoding="utf-8")
    report = {
        "trt_engine": str(target),
        "bytes": len(content),
        "onnx_file": str(source),
        "tensorrt": str(trt.__version__),
        "data_type": "as the quantized graph says" if typed else settings.tensorrt.data_type,
        "shapes": dict(zip(("min", "opt", "max"), (list(shape) for shape in shapes), strict=True)),
    }
    (results_dir / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    status.running(f"Engine written: {len(content) / 1e6:.1f} MB.", trt_engine=str(target))


def batch_shapes(settings: GenTrtEngine, graph: onnx.ModelProto) -> list[tuple[int, ...]]:
    """The input's shape at the smallest, the usual and the largest batch. Raises ValueError where they cannot be."""
    block = settings.tensorrt
    sizes = (block.min_batch_size, block.opt_batch_size, block.max_batch_size)
    if not sizes[0] <= sizes[1] <= sizes[2]:
        raise ValueError(
            f"gen_trt_engine.tensorrt: min_batch_size={sizes[0]}, opt_batch_size={sizes[1]}, max_batch_size={sizes[2]}"
            " are not in order"
        )
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    fixed, image = dims[0].dim_value, tuple(dim.dim_value for dim in dims[1:])
    if not all(image):
        raise ValueError(f"gen_trt_engine.onnx_file = {settings.onnx_file}: its image size is not fixed")
    if fixed:
        if settings.batch_size not in (-1, fixed):
            raise ValueError(
                f"gen_trt_engine.batch_size = {settings.batch_size}, but the graph was exported with {fixed}"
            )
        sizes = (fixed, fixed, fixed)
    return [(size, *image) for size in sizes]


def build(
    trt: Any, settings: GenTrtEngine, graph: onnx.ModelProto, shapes: Sequence[tuple[int, ...]], *, typed: bool
) -> bytes:
    """The serialized engine. typed: the graph says the arithmetic of its parts itself. Raises ValueError with
    TensorRT's own words when it cannot parse or build."""
    source = settings.onnx_file
    log = tensorrt_api.logger(trt, verbose=settings.verbose)
    builder = trt.Builder(log)
    # A version without the flag knows no other kind of network.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None) if typed else None
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(source):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ValueError(f"gen_trt_engine.onnx_file = {source}: TensorRT cannot read it: {reasons}")
    config = builder.create_builder_config()
    if settings.tensorrt.workspace_size:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.tensorrt.workspace_size * MEGABYTE)
    if not typed:
        _precision(trt, settings, graph, network, config)
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *shapes)
    config.add_optimization_profile(profile)
    cache = Path(settings.timing_cache) if settings.timing_cache else None
    if cache is not None:
        known = cache.read_bytes() if cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise ValueError(
            f"TensorRT could not build an engine of {source}; its messages above say why. A larger"
            " gen_trt_engine.tensorrt.workspace_size or a smaller max_batch_size often helps"
        )
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(content)


def _precision(trt: Any, settings: GenTrtEngine, graph: onnx.ModelProto, network: Any, config: Any) -> None:
    """FP16 where asked for, and layers that are to keep a precision of their own."""
    block = settings.tensorrt
    if block.data_type == "FP16":
        if not hasattr(trt.BuilderFlag, "FP16"):
            raise ValueError(
                f"TensorRT {trt.__version__} takes the arithmetic from the graph and knows no FP16 flag:"
                " install 'tensorrt<11', or set gen_trt_engine.tensorrt.data_type=FP32"
            )
        config.set_flag(trt.BuilderFlag.FP16)
    if not block.layers_precision:
        return
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    layers = [layer for layer in map(network.get_layer, range(network.num_layers)) if _is_floating(trt, layer)]
    for entry in block.layers_precision:
        name, _, precision = entry.rpartition(":")
        if not name or precision.lower() not in PRECISIONS:
            raise ValueError(
                f"gen_trt_engine.tensorrt.layers_precision: {entry!r} is not written name:fp32 or name:fp16"
            )
        nodes = module_names.chosen([name], onnx_graph.nodes(graph), "gen_trt_engine.tensorrt.layers_precision")
        chosen = [layer for layer in layers if _node(layer) in nodes]
        if not chosen:
            raise ValueError(f"gen_trt_engine.tensorrt.layers_precision: TensorRT makes no layer of {name!r}")
        for layer in chosen:
            layer.precision = getattr(trt, PRECISIONS[precision.lower()])


def _is_floating(trt: Any, layer: Any) -> bool:
    """Layers that compute shapes and indices have no precision to choose."""
    kinds = [layer.get_output(i).dtype for i in range(layer.num_outputs)]
    return bool(kinds) and all(kind in (trt.float32, trt.float16) for kind in kinds)


def _node(layer: Any) -> str:
    """The graph's node that a layer was made of. TensorRT notes it, since it renames layers of the same name."""
    noted = re.search(r"\[ONNX Layer: (.*?)\]", getattr(layer, "metadata", None) or "")
    return noted[1] if noted else str(layer.name)


def _is_quantized(graph: onnx.ModelProto) -> bool:
    # Weights alone in 4 bits come without nodes that quantize.
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.graph.node)
