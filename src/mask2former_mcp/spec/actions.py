"""The blocks that belong to one action each, and `quantize`, which every spec carries."""

from typing import Any, Literal

from mask2former_mcp.spec.field import (
    MISSING,
    BatchOrDefault,
    GpuIds,
    Int,
    NotNegative,
    Objects,
    Positive,
    Real,
    Section,
    Texts,
    section,
    spec_field,
)

_RESULTS = "Folder of this action's results; empty: a folder named after the action below the top results_dir."
_GPUS = "GPUs per node; a machine without any runs as many processes on its CPU."


class Evaluate(Section):
    """Measures a checkpoint (or a TensorRT engine) on dataset.val."""

    num_gpus: Positive = spec_field(
        1, f"{_GPUS} Keep 1 under TAO's images, whose numbers cover one GPU's share.", popular=True
    )
    gpu_ids: GpuIds = spec_field((0,), "GPU indices, as many as num_gpus.", popular=True)
    num_nodes: Positive = spec_field(1, "Machines that work together.", popular=True)
    checkpoint: str = spec_field(
        MISSING,
        "Checkpoint (.pth) or export (.onnx) to measure; our engine also reads a detectron2 .pkl or a folder of "
        "transformers. Must be given, unless trt_engine is.",
    )
    trt_engine: str = spec_field(
        "", "TensorRT engine to measure instead of a checkpoint. TAO's image takes semantic ones only."
    )
    results_dir: str = spec_field("", _RESULTS)
    batch_size: BatchOrDefault = spec_field(-1, "Images per step; -1: dataset.val.batch_size.")


class Inference(Section):
    """Predicts on the images of dataset.test.img_dir."""

    num_gpus: Positive = spec_field(1, "GPUs per node. Our engine predicts with one process.", popular=True)
    gpu_ids: GpuIds = spec_field((0,), "GPU indices, as many as num_gpus.", popular=True)
    num_nodes: Positive = spec_field(1, "Machines that work together.", popular=True)
    checkpoint: str = spec_field(
        MISSING,
        "Checkpoint (.pth) or export (.onnx) to predict with; our engine also reads a detectron2 .pkl or a folder of "
        "transformers. Must be given, unless trt_engine is.",
    )
    trt_engine: str = spec_field("", "TensorRT engine to predict with instead of a checkpoint.")
    results_dir: str = spec_field("", _RESULTS)
    batch_size: BatchOrDefault = spec_field(-1, "Images per step; -1: dataset.test.batch_size.")
    min_score: Real = spec_field(
        0.05,
        "Lowest score of a row in instances.json. Planning sets it to model.object_mask_threshold where that was said; "
        "the low default leaves out noise only, and keeps what a precision-recall curve needs.",
        ge=0,
        le=1,
        engine_only=True,
    )


class Export(Section):
    """Writes an ONNX graph (its outputs follow model.mode, whatever training's was), or a transformers folder."""

    results_dir: str = spec_field("", _RESULTS)
    gpu_id: NotNegative = spec_field(0, "GPU to trace on. Only TAO's image does: our engine traces on the CPU.")
    checkpoint: str = spec_field(MISSING, "Checkpoint (.pth) to export. Must be given.")
    format: Literal["onnx", "transformers"] = spec_field(
        "onnx",
        "What to write: an ONNX graph at onnx_file, or a folder `transformers` beside the results that transformers' "
        "from_pretrained loads. Only our engine writes the latter.",
        engine_only=True,
    )
    onnx_file: str = spec_field(
        MISSING,
        "ONNX file to write; it must not exist yet, unless overwrite says so. Must be given, and is not read for "
        "format=transformers.",
    )
    overwrite: bool = spec_field(
        False,
        "Replace the file or folder where it exists already; an export that fails leaves it as it was.",
        engine_only=True,
    )
    on_cpu: bool = spec_field(False, "Trace on the CPU, as our engine always does. TAO's image wants a GPU even then.")
    input_channel: Int = spec_field(3, "Channels of the input; the network takes 3 (RGB).", ge=3)
    input_width: Int = spec_field(960, "Width of the input in pixels, fixed in the graph.", ge=32)
    input_height: Int = spec_field(544, "Height of the input in pixels, fixed in the graph.", ge=32)
    opset_version: Positive = spec_field(
        17, "ONNX operator set. Our engine writes 18 or later and raises a lower number; TAO's image writes 17."
    )
    batch_size: BatchOrDefault = spec_field(-1, "Batch size fixed in the graph; -1: any.")
    verbose: bool = spec_field(False, "Print the graph while exporting.")


class TensorRt(Section):
    workspace_size: NotNegative = spec_field(
        1024, "Scratch memory for building, in MB. TAO's image counts whole GB: below 1024 it gets none."
    )
    min_batch_size: Positive = spec_field(1, "Smallest batch the engine accepts.", popular=True)
    opt_batch_size: Positive = spec_field(
        1, "Batch the engine is tuned for; between the smallest and the largest.", popular=True
    )
    max_batch_size: Positive = spec_field(1, "Largest batch the engine accepts.", popular=True)
    layers_precision: Texts = spec_field(
        (),
        "Precision of parts as name:precision (fp32 or fp16), by modules, nodes or patterns of them. TAO's image "
        "replaces it with a list of its own.",
    )
    data_type: Literal["FP32", "FP16"] = spec_field(
        "FP32", "Arithmetic of the engine; a quantized graph has its own. INT8 does not exist for this network."
    )


class GenTrtEngine(Section):
    """Builds a TensorRT engine from an ONNX file."""

    results_dir: str = spec_field("", _RESULTS)
    gpu_id: NotNegative = spec_field(0, "GPU to build on; the engine runs on this kind only.", popular=True)
    onnx_file: str = spec_field(MISSING, "ONNX file that export wrote. Must be given.")
    trt_engine: str = spec_field(MISSING, "Engine file to write. Must be given.")
    timing_cache: str = spec_field("", "File that keeps TensorRT's timings, so that the next build is faster.")
    batch_size: BatchOrDefault = spec_field(
        -1, "Batch size the ONNX file was exported with; -1: any, and the three sizes below apply.", popular=True
    )
    verbose: bool = spec_field(False, "Print what TensorRT does while it builds.")
    tensorrt: TensorRt = section(TensorRt, "Builder settings.")


class Quantize(Section):
    """Post-training quantization. The block is in every spec; only the quantize action reads it."""

    backend: Literal["modelopt.pytorch", "torchao", "modelopt.onnx"] = spec_field(
        "torchao",
        "Library: torchao (weights only), modelopt.pytorch, or modelopt.onnx, which starts from an ONNX file.",
    )
    mode: Literal["static_ptq", "weight_only_ptq"] = spec_field(
        "weight_only_ptq",
        "weight_only_ptq needs no data; static_ptq also quantizes activations and needs calibration images.",
    )
    algorithm: Literal["minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq"] = spec_field(
        "minmax",
        "How ranges are found. torchao: minmax; modelopt.pytorch: max, awq_lite, awq_full; modelopt.onnx: max, "
        "entropy, awq_*, rtn_dq. awq_* and rtn_dq: weights in 4 bits; the others: 8 bits.",
    )
    layers: Objects = spec_field(
        (),
        "Settings per layer, each with a module name or pattern and its own dtype; empty: one rule for all. Our "
        "engine reads it for torchao only.",
    )
    skip_names: Texts = spec_field((), "Modules left as they are, by name or pattern; of a graph, also nodes.")
    model_path: str = spec_field("", "Checkpoint to quantize; an ONNX file for modelopt.onnx. Must be given.")
    results_dir: str = spec_field("", _RESULTS)
    backend_kwargs: dict[str, Any] = spec_field({}, "Further settings, passed to the library as they are.")
    device: str = spec_field(
        "cuda",
        "Where calibration and measurement run: cuda, cuda:N, cpu or trt (here: a GPU).",
        pattern=r"^(cuda|cpu|trt|cuda:[0-9]+)$",
    )
