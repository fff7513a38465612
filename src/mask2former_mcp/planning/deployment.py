"""Mask2Former's rules for what is done with a trained model: export, ONNX files, quantization, TensorRT.

Each raises InvalidRequest with values, rule and fix, or yields warnings.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.planning.rules import Situation
from mask2former_mcp.spec import dotted

ALGORITHMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "torchao": ("weight_only_ptq", ("minmax",)),
    "modelopt.pytorch": ("static_ptq", ("max", "awq_lite", "awq_full")),
    "modelopt.onnx": ("static_ptq", ("max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq")),
}
_FOUR_BITS = ("awq_clip", "awq_lite", "awq_full", "rtn_dq")
_BACKENDS: Mapping[str, str] = {
    "torchao": "torchao: 8-bit weights of linear layers; evaluate and inference take the result, and export, which "
    "writes it in full float32 again",
    "modelopt.pytorch": "modelopt.pytorch needs the package nvidia-modelopt in the engine's Python; it simulates "
    "{bits} in PyTorch, so that size and speed do not improve; evaluate and inference take the result",
    "modelopt.onnx": "modelopt.onnx, {bits}: by nvidia-modelopt[onnx] where the engine's Python has it, otherwise by "
    "onnxruntime's static Q/DQ quantization (algorithms max and entropy only); evaluate and inference take the result",
}
_TENSORRT = (
    "needs the package tensorrt (below 11) in the engine's Python and an NVIDIA GPU; the other way is NVIDIA's TAO "
    "deploy container (runtime=tao)"
)


def tensorrt(s: Situation) -> Iterator[str]:
    if s.tensorrt and s.action in ("evaluate", "inference"):
        _mode_of_engine(s)
        if s.runtime == "engine":
            yield _tensorrt_here(s)
    if s.action != "gen_trt_engine":
        return
    block = dotted.get(s.spec, "gen_trt_engine.tensorrt")
    low, opt, high = (block[f"{name}_batch_size"] for name in ("min", "opt", "max"))
    if not low <= opt <= high:
        raise InvalidRequest(
            f"min_batch_size={low}, opt_batch_size={opt}, max_batch_size={high} are not in order",
            fix="Choose min <= opt <= max.",
        )
    if s.runtime != "engine":
        return
    if block["data_type"] == "FP16" and _quantized(s, "onnx_file"):
        raise InvalidRequest(
            "data_type=FP16: a quantized graph says itself in which arithmetic each of its parts runs",
            fix="Leave data_type out, or build the engine from the export that was quantized.",
        )
    yield _tensorrt_here(s)


def _mode_of_engine(s: Situation) -> None:
    mode = dotted.get(s.spec, "model.mode")
    exported = (s.known_spec or {}).get("model", {}).get("mode", mode)
    if s.deploy and s.action == "evaluate" and (mode != "semantic" or exported != "semantic"):
        raise InvalidRequest(
            f"TAO's TensorRT evaluation needs an engine made from a semantic export, but the mode is {exported}",
            fix="Run export with mode=semantic, then gen_trt_engine, then evaluate that engine; or evaluate the "
            "checkpoint itself; or use runtime=engine.",
        )
    if not s.deploy and exported != mode:
        raise InvalidRequest(
            f"mode={mode}, but the engine was made from a {exported} export, and a graph has one mode",
            fix=f"Leave mode out, or export the checkpoint with mode={mode} and build an engine of that.",
        )


def _quantized(s: Situation, key: str, backend: str = "") -> bool:
    """Whether a key of the action names what `quantize` wrote, by its name."""
    return PurePath(str(s.spec[s.action].get(key, ""))).name.startswith(f"quantized_model{backend}")


def _tensorrt_here(s: Situation) -> str:
    """A note, or (with !) what keeps it from starting. A Plan for containers needs no GPU where it is made."""
    if s.machine.gpus or s.platform != "local":
        return _TENSORRT
    return f"!{s.action} has no NVIDIA GPU here: with TensorRT it {_TENSORRT}"


def graphs(s: Situation) -> Iterator[str]:
    """ONNX files as the model of evaluate, inference and export."""
    path = str(s.spec.get(s.action, {}).get("checkpoint", ""))
    if not path.endswith(".onnx"):
        return
    if s.action not in ("evaluate", "inference"):
        raise InvalidRequest(
            f"{s.action}.checkpoint={path!r} is an ONNX file already",
            fix=f"{s.action} starts from a checkpoint (.pth): name one, or the train job as parent_job_id.",
        )
    if s.runtime == "tao":
        raise InvalidRequest(
            f"{s.action}.checkpoint={path!r}: TAO's images do not run ONNX files",
            fix="Use runtime=engine, or the checkpoint (.pth).",
        )
    exported = (s.known_spec or {}).get("model", {}).get("mode")
    mode = dotted.get(s.spec, "model.mode")
    if exported is not None and exported != mode:
        raise InvalidRequest(
            f"mode={mode}, but {path!r} is a {exported} export, and a graph has one mode",
            fix=f"Leave mode out, or export the checkpoint with mode={mode}.",
        )
    yield "the ONNX file runs in onnxruntime: images are fitted into its fixed size and padded; there is no val_loss"


def export(s: Situation) -> Iterator[str]:
    if s.action == "export" and s.runtime == "tao" and s.said.get("export.overwrite"):
        raise InvalidRequest(
            "export.overwrite is our engine's: under runtime=tao an ONNX file that exists is never replaced",
            fix="Choose another onnx_file, or use runtime=engine.",
        )
    if s.action == "export" and s.runtime == "engine" and _quantized(s, "checkpoint"):
        if _quantized(s, "checkpoint", "_modelopt.pytorch"):
            raise InvalidRequest(
                "the checkpoint simulates its quantized arithmetic, which an export would lose",
                fix="Export the original, then quantize that file with backend=modelopt.onnx.",
            )
        yield (
            "the quantized weights are multiplied out: what is exported is full float32 again, rounded as they were; "
            "for a smaller graph quantize an export with backend=modelopt.onnx"
        )
    # Under TAO the key is not in the spec, since its config does not know it.
    if s.action != "export" or s.said.get("export.format", s.spec["export"].get("format")) != "transformers":
        return
    if s.runtime == "tao":
        raise InvalidRequest(
            "format=transformers is our engine's: under runtime=tao export writes ONNX",
            fix="Use format=onnx, or runtime=engine.",
        )
    if dotted.get(s.spec, "model.backbone.type") != "swin":
        raise InvalidRequest(
            "format=transformers: transformers' Mask2Former has no EfficientViT backbone", fix="Use format=onnx."
        )
    yield "input size, batch size and opset say nothing of a transformers folder and are not read"


def quantize(s: Situation) -> Iterator[str]:
    if s.action != "quantize":
        return
    block = s.spec["quantize"]
    mode, algorithms = ALGORITHMS[block["backend"]]
    if block["mode"] != mode or block["algorithm"] not in algorithms:
        raise InvalidRequest(
            f"backend={block['backend']} with quantize_mode={block['mode']} and algorithm={block['algorithm']} is no "
            "combination that exists",
            fix=f"{block['backend']} takes quantize_mode={mode} and algorithm {' or '.join(algorithms)}.",
        )
    is_onnx = str(block["model_path"]).endswith(".onnx")
    if is_onnx != (block["backend"] == "modelopt.onnx"):
        raise InvalidRequest(
            f"backend={block['backend']} does not take model_path={block['model_path']!r}",
            fix="modelopt.onnx takes an ONNX file, the other backends a checkpoint (.pth).",
        )
    if mode == "static_ptq" and not dotted.get(s.spec, "dataset.quant_calibration_dataset.images_dir"):
        raise InvalidRequest(
            "quantize_mode=static_ptq needs calibration images", fix="Pass train_dataset=<folder with images>."
        )
    if is_onnx and s.runtime == "tao" and not dotted.get(s.spec, "dataset.test.target_size"):
        raise InvalidRequest(
            "backend=modelopt.onnx calibrates at one image size: dataset.test.target_size is empty",
            fix="Set dataset.test.target_size to the export's [height, width].",
        )
    if s.runtime == "engine":
        if block["layers"] and block["backend"] != "torchao":
            raise InvalidRequest(
                f"quantize.layers is read by backend=torchao only, not by {block['backend']}",
                fix="Leave it out; quantize.skip_names names what is to be left as it is.",
            )
        bits = "4-bit weights" if block["algorithm"] in _FOUR_BITS else "8-bit weights and activations"
        yield _BACKENDS[block["backend"]].format(bits=bits)


def completed(s: Situation, warnings: list[str]) -> dict[str, Any]:
    """Quantization's mode and algorithm where only the backend was said: the mode that it has, its first algorithm."""
    block = s.spec["quantize"]
    mode, algorithms = ALGORITHMS[block["backend"]]
    values: dict[str, Any] = {}
    for key, legal in (("quantize.mode", (mode,)), ("quantize.algorithm", algorithms)):
        if key not in s.said and dotted.get(s.spec, key) not in legal:
            values[key] = legal[0]
            others = f" (others: {', '.join(legal[1:])})" if legal[1:] else ""
            warnings.append(f"{key} is set to {legal[0]}, as backend={block['backend']} needs{others}")
    return values
