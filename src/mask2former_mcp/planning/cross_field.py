"""Mask2Former's rules that span several keys. Each raises InvalidRequest with values, rule and fix, or warns."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mask2former_mcp.errors import DatasetError, InvalidRequest
from mask2former_mcp.planning import deployment, tao
from mask2former_mcp.planning.merge import same, show
from mask2former_mcp.planning.rules import Findings, Situation
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.swin_sizes import SWIN_SIZES, SwinSize, meant

LEGAL_MODES: Mapping[str, tuple[str, ...]] = {
    "coco_panoptic": ("panoptic", "instance", "semantic"),
    "coco": ("instance", "semantic"),
    "ade": ("semantic",),
}
LARGEST_WINDOW = 64
RECOMMENDED_GPUS = 4  # for a training of a published network
_LEVELS = ["res2", "res3", "res4", "res5"]
# What the engine builds in one way only: the decoders read features at strides 4, 8, 16 and 32.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "swin": {"patch_size": 4, "out_indices": [0, 1, 2, 3], "out_features": _LEVELS},
    "efficientvit": {"out_features": _LEVELS},
}
_TAO_RUNS = (".pth", ".pt", ".tlt", ".onnx")
_TAO_READS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "train": {
        "train.pretrained_model_path": (".pth", ".pkl"),
        "model.backbone.pretrained_weights": (".pth", ".pt", ".tlt"),
    },
    "evaluate": {"evaluate.checkpoint": _TAO_RUNS},
    "inference": {"inference.checkpoint": _TAO_RUNS},
}


def swin_size(spec: Mapping[str, Any]) -> SwinSize:
    """The backbone that a spec means."""
    swin = dotted.get(spec, "model.backbone.swin")
    return meant(swin["type"], swin["embed_dim"], swin["depths"], swin["num_heads"])


def check(situation: Situation) -> Findings:
    """All rules, in the order of the list below."""
    warnings: list[str] = []
    missing: list[str] = []
    for rule in _RULES:
        for note in rule(situation):
            (missing if note.startswith("!") else warnings).append(note.lstrip("!"))
    return Findings(warnings=tuple(warnings), missing=tuple(missing))


def _mode_and_format(s: Situation) -> Iterator[str]:
    if s.format is None or not _measures(s):
        return
    mode = dotted.get(s.spec, "model.mode")
    if mode not in LEGAL_MODES[s.format]:
        pairs = "; ".join(f"{name}: {', '.join(modes)}" for name, modes in LEGAL_MODES.items())
        raise InvalidRequest(
            f"mode={mode} and dataset_format={s.format} do not go together: {s.format} annotations cannot teach or "
            f"measure {mode} segmentation",
            fix=f"Choose a legal pair ({pairs}).",
        )
    if mode == "semantic" and s.format == "coco":
        yield (
            "coco annotations leave pixels outside all masks unannotated: in mode=semantic they do not count, so mIoU "
            "says nothing of what is predicted there"
        )


def _measures(s: Situation) -> bool:
    """Whether the action opens dataset.val; quantize does where there is validation data."""
    return s.action in ("train", "evaluate") or (s.action == "quantize" and "eval" in s.images)


def _metric(s: Situation) -> Iterator[str]:
    """A search cannot maximise what no validation measures: every trial would fail after its last epoch."""
    if s.metric is None or s.format is None:
        return
    mode = dotted.get(s.spec, "model.mode")
    measured = [] if mode == "instance" and s.runtime == "engine" else ["mIoU"]
    if mode == "panoptic" and s.format == "coco_panoptic":
        measured.append("PQ")
    if mode in ("panoptic", "instance") and s.format in ("coco", "coco_panoptic"):
        measured.append("AP")
    if s.metric not in measured:
        raise InvalidRequest(
            f"automl.metric={s.metric} is not measured with mode={mode} on {s.format} annotations",
            fix=f"Choose {' or '.join(measured)}, or another mode.",
        )
    yield from ()


def _network(s: Situation) -> Iterator[str]:
    if s.action == "gen_trt_engine" or s.deploy:
        return
    backbone = dotted.get(s.spec, "model.backbone.type")
    if backbone not in ("swin", "efficientvit"):
        raise InvalidRequest(f"model.backbone.type={backbone!r} is unknown", fix="Set it to swin or efficientvit.")
    for name, built in _FIXED[backbone].items() if s.runtime == "engine" else ():
        key = f"model.backbone.{backbone}.{name}"
        if not same(found := dotted.get(s.spec, key), built):
            raise InvalidRequest(
                f"{key}={show(found)}: the engine builds {show(built)} only, because the decoders read the strides 4, "
                "8, 16 and 32",
                fix=f"Leave {key} out.",
            )
    if backbone == "efficientvit":
        if s.action == "train" and int(dotted.get(s.spec, "train.num_gpus")) > 1:
            yield "efficientvit has batch norm: its statistics are synchronised across the GPUs (sync_batchnorm)"
    else:
        yield from _swin(s)
    head, former = dotted.get(s.spec, "model.sem_seg_head"), dotted.get(s.spec, "model.mask_former")
    if former["hidden_dim"] % former["nheads"]:
        raise InvalidRequest(
            f"model.mask_former.hidden_dim={former['hidden_dim']} is not a multiple of nheads={former['nheads']}",
            fix="Choose nheads that divide hidden_dim, e.g. 8.",
        )
    if head["norm"] == "GN" and (head["convs_dim"] % 32 or head["mask_dim"] % 32):
        raise InvalidRequest(
            f"model.sem_seg_head.convs_dim={head['convs_dim']} and mask_dim={head['mask_dim']} must be multiples of "
            "32: group norm has 32 groups",
            fix="Choose multiples of 32, e.g. 64 or 256.",
        )


def _swin(s: Situation) -> Iterator[str]:
    name = dotted.get(s.spec, "model.backbone.swin.type")
    window = dotted.get(s.spec, "model.backbone.swin.window_size")
    if window > LARGEST_WINDOW:
        raise InvalidRequest(
            f"model.backbone.swin.window_size={window} is more than {LARGEST_WINDOW}: every patch of a window attends "
            "to every other, so memory grows with the fourth power of this number",
            fix="Set it to 7 or 12, the published ones, or leave it out.",
        )
    size = swin_size(s.spec)
    for stage, count in enumerate(size.num_heads):
        if (size.embed_dim * 2**stage) % count:
            raise InvalidRequest(
                f"model.backbone.swin: {count} heads do not divide the {size.embed_dim * 2**stage} channels of stage "
                f"{stage}",
                fix=f"Choose num_heads that divide {[size.embed_dim * 2**i for i in range(len(size.num_heads))]}.",
            )
    published = size == SWIN_SIZES[name]
    shape = f"embed_dim={size.embed_dim}, depths={list(size.depths)}, num_heads={list(size.num_heads)}"
    if s.runtime == "tao" and not published:
        raise InvalidRequest(
            f"model.backbone.swin: type={name} and the explicit {shape} disagree, and under runtime=tao the type wins "
            "silently",
            fix="Leave the explicit keys out, or use runtime=engine, where they win.",
        )
    if s.action != "train" or dotted.get(s.spec, "train.pretrained_model_path"):
        return
    weights = dotted.get(s.spec, "model.backbone.pretrained_weights")
    if weights and not published:
        raise InvalidRequest(
            f"pretrained_weights={weights!r} cannot fit a Swin with {shape}",
            fix="Train this size from scratch (pretrained_weights=''), or choose a published one (backbone=swin_tiny).",
        )
    if not weights and published and name != "tiny":  # those of tiny are fetched, unless somebody said otherwise
        yield f"published weights fit this backbone: pass pretrained_weights=<a local file of Swin {name}>"


def _batches(s: Situation) -> Iterator[str]:
    """Validation and test images keep their own shapes, so they batch only when one size is set."""
    opened = ("val",) if _measures(s) else ("test",) if s.action == "inference" else ()
    # TAO's deploy image stretches all images to one size; an ONNX file that is quantized has one.
    is_fixed = s.deploy or (s.action == "quantize" and str(s.spec["quantize"]["model_path"]).endswith(".onnx"))
    for split in () if is_fixed else opened:
        block = dotted.get(s.spec, f"dataset.{split}")
        own = s.spec.get(s.action, {}).get("batch_size", -1) if s.action != "train" else -1
        key = f"{s.action}.batch_size" if own and own > 0 else f"dataset.{split}.batch_size"
        batch = own if own and own > 0 else block["batch_size"]
        if batch > 1 and not block["target_size"]:
            raise InvalidRequest(
                f"{key}={batch} needs dataset.{split}.target_size: images of different shapes do not make a batch",
                fix=f"Set dataset.{split}.target_size to [height, width], or {key} to 1.",
            )
        if split == "val" and s.images.get("eval") is not None and s.images["eval"] < batch:
            raise DatasetError(
                f"{s.images['eval']} validation images are less than one batch of {batch}", fix=f"Lower {key}."
            )
    if s.action == "train" and "train" in s.images:
        sizes = [int(dotted.get(s.spec, k)) for k in ("dataset.train.batch_size", "train.num_gpus", "train.num_nodes")]
        times = int(s.spec["train"].get("accumulate_grad_batches", 1))  # TAO does not know the key
        others = sizes[1] * sizes[2] * times
        if s.images["train"] < sizes[0] * others:
            more = f" x {times} batches (train.accumulate_grad_batches)" if times > 1 else ""
            raise DatasetError(
                f"{s.images['train']} training images are less than one step of {sizes[0] * others} "
                f"(batch {sizes[0]} x {sizes[1]} GPU(s) x {sizes[2]} node(s){more})",
                fix=f"Lower batch_size to at most {max(1, s.images['train'] // others)}, or use fewer GPUs.",
            )
    yield from ()


def _files_for_tao(s: Situation) -> Iterator[str]:
    reads = _TAO_READS.get(s.action, {}) if s.runtime == "tao" and not s.tensorrt else {}
    for key, suffixes in reads.items():
        start = str(dotted.get(s.spec, key) or "")
        if start and not start.endswith(suffixes):
            raise InvalidRequest(
                f"{key}={start!r}: TAO reads {' and '.join(suffixes)} files there only",
                fix="Pass such a file, or use runtime=engine.",
            )
    yield from ()


def _training(s: Situation) -> Iterator[str]:
    if s.action != "train":
        return
    precision = dotted.get(s.spec, "train.precision")
    if precision == "bf16" and s.runtime == "tao":
        raise InvalidRequest(
            "train.precision=bf16 is our engine's: under runtime=tao it is fp16 or fp32",
            fix="Set train.precision to fp16 or fp32, or use runtime=engine.",
        )
    if s.runtime == "tao" and s.said.get("train.accumulate_grad_batches", 1) != 1:
        raise InvalidRequest(
            "train.accumulate_grad_batches is our engine's: under runtime=tao a step learns from one batch a GPU",
            fix="Leave it out, or use runtime=engine.",
        )
    if precision == "fp16" and s.runtime == "engine" and s.machine.gpus == 0:
        raise InvalidRequest(
            "train.precision=fp16 does not train on a CPU, and this machine has no GPU",
            fix="Set train.precision to fp32 or bf16 (and train.distributed_strategy to ddp).",
        )
    epochs = dotted.get(s.spec, "train.num_epochs")
    milestones = dotted.get(s.spec, "train.optim.milestones")
    steps = dotted.get(s.spec, "train.optim.lr_scheduler") == "MultiStep"
    if steps and "train.optim.milestones" in s.said and milestones and min(milestones) > epochs:
        yield f"train.optim.milestones={milestones} lie beyond num_epochs={epochs}: the learning rate never drops"
    if s.runtime == "tao" and dotted.get(s.spec, "train.validation_interval") > epochs:
        raise InvalidRequest("train.validation_interval is more than num_epochs", fix="Lower it.")
    if not dotted.get(s.spec, "dataset.contiguous_id") and dotted.get(s.spec, "model.mode") == "panoptic":
        yield (
            "contiguous_id=false: class numbers are raw ids, gaps become classes without images"
            + (", and TAO treats every class as a thing" if s.runtime == "tao" else "")
        )
    shortest, longest = (dotted.get(s.spec, f"dataset.augmentation.test_{end}_size") for end in ("min", "max"))
    if shortest > longest:
        raise InvalidRequest(
            f"dataset.augmentation.test_min_size={shortest} is more than test_max_size={longest}",
            fix="Make test_max_size at least test_min_size.",
        )


def _hardware(s: Situation) -> Iterator[str]:
    """The published guidance, as far as this machine can follow it."""
    if s.action != "train":
        return
    gpus, memory = s.machine.gpus, s.machine.gpu_memory_gb
    advised = min(gpus, RECOMMENDED_GPUS)
    if gpus == 0 and s.runtime == "engine":
        yield (
            "no GPU here: one process on the CPU; the published networks want 1 GPU at least, and"
            f" {RECOMMENDED_GPUS} are recommended"
        )
    elif (count := dotted.get(s.spec, "train.num_gpus")) < advised and "train.num_gpus" not in s.said:
        yield f"it trains on {count} of the {gpus} GPUs here: num_gpus={advised} is recommended for a reasonable speed"
    if memory is not None and memory < 23:
        yield f"{memory:.0f} GB of GPU memory: 24 GB or more are recommended; keep batch_size 1 and smaller crops"


_RULES: tuple[Callable[[Situation], Iterator[str]], ...] = (
    _mode_and_format, _metric, deployment.export, _network, _batches, _files_for_tao, _training, _hardware,
    deployment.tensorrt, deployment.graphs, deployment.quantize, tao.check,
)  # fmt: skip
