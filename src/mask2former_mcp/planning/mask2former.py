"""What is true of Mask2Former only: arguments, values that follow from the data, and what later actions must repeat."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mask2former_mcp.datasets.facts import DatasetFacts, num_classes
from mask2former_mcp.errors import DatasetError, InvalidRequest
from mask2former_mcp.jobs.plan import Estimate
from mask2former_mcp.lineage import Earlier
from mask2former_mcp.planning import cross_field, deployment, estimate, loading, tao
from mask2former_mcp.planning.merge import show
from mask2former_mcp.planning.request import ActionRequest
from mask2former_mcp.planning.rules import Findings, Situation
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.swin_sizes import SWIN_SIZES

NUM_CLASSES = "model.sem_seg_head.num_classes"
CONTIGUOUS = "dataset.contiguous_id"
BATCH = "dataset.train.batch_size"
THRESHOLD, MIN_SCORE = "model.object_mask_threshold", "inference.min_score"
WEIGHTS = "model.backbone.pretrained_weights"
_SAME_CLASSES = "Pass a dataset with the same categories in the same order as the one it was trained on."
_DEFAULT_MODE = {"coco_panoptic": "panoptic", "coco": "instance", "ade": "semantic"}

# The network's shape and what its numbers mean: later actions must repeat these, or the weights do not fit.
_ARCHITECTURE = re.compile(
    r"model\.backbone\.(?!pretrained_weights$).+|model\.sem_seg_head\..+"
    r"|model\.mask_former\.(?:nheads|num_object_queries|hidden_dim|dim_feedforward|dec_layers|pre_norm)"
    r"|dataset\.contiguous_id"
)
# Not architecture, but the same numbers are only comparable when these stay as they were.
_CARRIED = re.compile(r"model\.mode|dataset\.augmentation\.test_.+|dataset\.pixel_(?:mean|std)|model\.mask_former\..+")
# Leaves of the blocks above that change training only.
_FREE = re.compile(
    r"model\.backbone\.(?:swin|efficientvit)\.(?:use_checkpoint|drop_rate|attn_drop_rate|drop_path_rate|pretrain_img_size)"
)


class Mask2FormerRules:
    remarks: Mapping[str, str] = {
        "gen_trt_engine.tensorrt.data_type": "INT8 is not supported for this network's TensorRT engines",
        "train.precision": "fp16, fp32, and bf16 on our engine",
        "model.mode": "one head, read out in three ways",
    }
    metrics: Mapping[str, str] = {"instance": "AP"}
    tao_needs_key = False

    def arguments(self, request: ActionRequest) -> dict[str, dict[str, Any]]:
        values: dict[str, dict[str, Any]] = {}
        backbone = getattr(request, "backbone", None)
        if backbone is not None:
            family, _, size = backbone.partition("_")
            named = "model.backbone.swin.type" if family == "swin" else "model.backbone.efficientvit.name"
            values["backbone"] = {"model.backbone.type": family, named: size}
        for name, key in (
            ("pretrained_weights", WEIGHTS),
            ("threshold", THRESHOLD),
            ("quantize_mode", "quantize.mode"),
        ):
            if getattr(request, name, None) is not None:
                values[name] = {key: getattr(request, name)}
        return values

    def is_architecture(self, key: str) -> bool:
        return bool(_ARCHITECTURE.fullmatch(key)) and not _FREE.fullmatch(key)

    def derive(self, situation: Situation) -> Findings:
        values: dict[str, Any] = {}
        warnings: list[str] = []
        for split in ("train", "val", "test") if situation.format else ():
            values[f"dataset.{split}.type"] = situation.format
        values |= _carried(self, situation)
        values |= _mode(situation, values)
        contiguous = _contiguous(situation, values)
        if situation.action != "gen_trt_engine":
            values[CONTIGUOUS] = contiguous
            values[NUM_CLASSES] = _num_classes(situation, contiguous, warnings)
        if situation.action == "train":
            values |= _batch(situation, warnings)
            values |= _intervals(situation, warnings)
            values |= _precision(situation, warnings)
            values |= _pretrained(situation, warnings)
        if situation.action == "inference" and THRESHOLD in situation.said and MIN_SCORE not in situation.said:
            values[MIN_SCORE] = situation.said[THRESHOLD]
        if situation.action == "quantize":
            values |= deployment.completed(situation, warnings)
        values |= loading.workers(situation, warnings)
        of_tao = tao.derive(situation)
        return Findings({**values, **of_tao.values}, (*warnings, *of_tao.warnings))

    def check(self, situation: Situation) -> Findings:
        return cross_field.check(situation)

    def estimate(self, situation: Situation, earlier: Sequence[Earlier]) -> Estimate:
        return estimate.estimate(situation, earlier)


def _carried(rules: Mask2FormerRules, situation: Situation) -> dict[str, Any]:
    """Values of the job (or file) the weights come from; an override of the architecture that disagrees is an error."""
    if situation.known_spec is None:
        return {}
    values: dict[str, Any] = {}
    tuning = situation.action == "train"
    for key, value in dotted.flatten(situation.known_spec).items():
        architecture = rules.is_architecture(key)
        if key == NUM_CLASSES and tuning:
            continue  # the class head is made anew from the new data
        if not architecture and not (_CARRIED.fullmatch(key) or _FREE.fullmatch(key)):
            continue
        said = situation.said.get(key)
        if said is None:
            values[key] = value
        elif architecture and said != value and not (tuning and key == CONTIGUOUS):
            origin = situation.parent.job_id if situation.parent else "the checkpoint's own experiment.yaml"
            raise InvalidRequest(
                f"{key}={show(said)} does not fit the weights: {origin} was trained with {key}={show(value)}",
                fix=f"Leave {key} out (it is carried over), or set it to {show(value)}.",
            )
    return values


def _mode(situation: Situation, carried: Mapping[str, Any]) -> dict[str, Any]:
    """Not said and not carried: what the annotations can teach."""
    if "model.mode" in situation.said or "model.mode" in carried or situation.format is None:
        return {}
    return {"model.mode": _DEFAULT_MODE[situation.format]}


def _contiguous(situation: Situation, carried: Mapping[str, Any]) -> bool:
    """`true` unless the caller sets it or the parent has it."""
    return bool(situation.said.get(CONTIGUOUS, carried.get(CONTIGUOUS, True)))


def _num_classes(situation: Situation, contiguous: bool, warnings: list[str]) -> int:
    """From the annotations, or from the parent; a different value that somebody set is an error with the right one."""
    said = situation.said.get(NUM_CLASSES)
    known = None
    if situation.known_spec is not None and situation.action != "train":
        known = dotted.flatten(situation.known_spec).get(NUM_CLASSES)  # a transformers folder's tells no classes
    derived = {role: num_classes(facts, contiguous) for role, facts in situation.facts.items()}
    if known is not None:
        _same_classes_as_parent(situation, said, int(known), derived, contiguous)
        return int(known)
    if not derived:
        if said is None:
            raise InvalidRequest(
                f"{situation.action} does not know how many classes the weights have: there is no parent job, no "
                "experiment.yaml beside the checkpoint and no annotation file",
                fix=f"Pass parent_job_id, or set {NUM_CLASSES} (and the other architecture keys) in overrides.",
            )
        return int(said)
    right = max(derived.values())
    if "train" in derived and "eval" in derived:
        _same_categories(situation.facts, contiguous)
    if said is None:
        if right > 254:
            warnings.append(f"{right} classes: labels above 254 count as void in the metrics")
        return right
    wrong = said != right if contiguous else said < right
    if wrong:
        rule = "the number of categories" if contiguous else "at least the largest category id"
        raise DatasetError(
            f"num_classes={said} does not fit the data: with contiguous_id={str(contiguous).lower()} it is {rule}, "
            f"{right}",
            fix=f"Leave num_classes out, or set it to {right}.",
        )
    return int(said)


def _same_classes_as_parent(
    situation: Situation, said: Any, known: int, derived: Mapping[str, int], contiguous: bool
) -> None:
    origin = situation.parent.job_id if situation.parent else "the checkpoint"
    if said is not None and said != known:
        raise InvalidRequest(
            f"num_classes={said} does not fit the weights: {origin} has {known} classes",
            fix=f"Leave num_classes out, or set it to {known}.",
        )
    for role, count in derived.items():
        if (count != known) if contiguous else (count > known):
            raise DatasetError(
                f"the {role} dataset has {count} classes, but the weights of {origin} have {known}", fix=_SAME_CLASSES
            )
    if situation.labels and "eval" in situation.facts:
        _same_labels(situation, origin, contiguous)


def _same_labels(situation: Situation, origin: str, contiguous: bool) -> None:
    """The eval dataset's classes against the label map of the weights: ids in their order, and what they are called."""
    facts, known = situation.facts["eval"], dict(situation.labels)
    names = {id_: name for id_, name, _ in facts.categories}
    of_parent = situation.parent.datasets.values() if situation.parent else ()
    is_own = any(
        one.get("hashes") == facts.hashes for one in of_parent
    )  # its two names for a class were warned of then
    for id_, name in known.items():
        if id_ in names and (is_own or names[id_] == f"class_{id_}"):  # or the annotations leave it without a name
            names[id_] = name
    labels, found = list(situation.labels), list(names.items())
    if situation.format == "ade":  # its masks hold ids, and the label map that is read gives them their order
        labels, found = sorted(labels), sorted(found)
    if not contiguous:  # an id is its class, wherever it stands; one that only one side has is nobody's mistake yet
        labels, found = ([(id_, side[id_]) for id_ in sorted(known.keys() & names.keys())] for side in (known, names))
    at = _differ_at(labels, found)
    if at is None:
        return
    rule = "a class is its position in this list" if contiguous else "a class is its id"
    raise DatasetError(
        f"the categories of the eval dataset differ from the label map of the weights of {origin} at {at}; {rule}, so "
        "the metric would be wrong",
        fix=_SAME_CLASSES,
    )


def _same_categories(facts: Mapping[str, DatasetFacts], contiguous: bool) -> None:
    train = [(c[0], c[1]) for c in facts["train"].categories]
    val = [(c[0], c[1]) for c in facts["eval"].categories]
    at = _differ_at(train, val)
    if at is None or (not contiguous and dict(train) == dict(val)):
        return
    raise DatasetError(
        f"training and validation categories differ at {at}; a class is its position in this list, so the metric "
        "would be wrong",
        fix="Give both annotation files the same categories in the same order.",
    )


def _differ_at(one: Sequence[object], other: Sequence[object]) -> str | None:
    """Where two lists part, in words; None when they are the same."""
    if list(one) == list(other):
        return None
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    left, right = (show(side[at]) if at < len(side) else "nothing" for side in (one, other))
    return f"position {at}: {left} against {right}"


def _batch(situation: Situation, warnings: list[str]) -> dict[str, Any]:
    """A batch that nobody asked for (a preset's) shrinks to what the data can fill; one that was said is checked."""
    images, batch = situation.images.get("train"), int(_get(situation.spec, BATCH))
    others = int(_get(situation.spec, "train.num_gpus")) * int(_get(situation.spec, "train.num_nodes"))
    others *= int(situation.spec["train"].get("accumulate_grad_batches", 1))
    if images is None or BATCH in situation.said or batch * others <= images:
        return {}
    fitting = max(1, images // others)
    warnings.append(f"{BATCH}={batch} is more than the {images} training image(s) fill: set to {fitting}")
    return {BATCH: fitting}


def _intervals(situation: Situation, warnings: list[str]) -> dict[str, Any]:
    epochs = int(_get(situation.spec, "train.num_epochs"))
    values: dict[str, Any] = {}
    by_epoch = _get(situation.spec, "train.checkpoint_interval_unit") == "epoch"
    for key in ("train.checkpoint_interval", "train.validation_interval"):
        interval = int(_get(situation.spec, key))
        if interval > epochs and (by_epoch or key != "train.checkpoint_interval"):
            values[key] = epochs
            warnings.append(f"{key}={interval} is more than train.num_epochs={epochs}: set to {epochs}")
    checkpoint, validation = (
        int(values.get(key, _get(situation.spec, key)))
        for key in ("train.checkpoint_interval", "train.validation_interval")
    )
    if by_epoch and checkpoint % validation and validation % checkpoint:
        warnings.append(
            f"checkpoints every {checkpoint} and validation every {validation} epochs rarely meet: `best` chooses "
            "among epochs that have both"
        )
    return values


def _precision(situation: Situation, warnings: list[str]) -> dict[str, Any]:
    spec = situation.spec
    if _get(spec, "train.distributed_strategy") != "fsdp":
        return {}
    devices = int(_get(spec, "train.num_gpus")) * int(_get(spec, "train.num_nodes"))
    if devices == 1:
        warnings.append("train.distributed_strategy=fsdp has nothing to shard on one GPU and changes nothing")
        return {}
    precision = _get(spec, "train.precision")
    if precision != "fp16":
        warnings.append(f"train.distributed_strategy=fsdp trains in fp16: train.precision={precision} is set to fp16")
    return {"train.precision": "fp16"}


def _pretrained(situation: Situation, warnings: list[str]) -> dict[str, Any]:
    """Window and image size that the name of the backbone's weights tells, unless the caller said otherwise."""
    weights = _get(situation.spec, WEIGHTS)
    name = weights.rsplit("/", 1)[-1] if isinstance(weights, str) else ""
    found = re.match(r"swin_(tiny|small|base|large)", name)
    if not found:
        return {}
    key, size = "model.backbone.swin.type", found[1]
    if WEIGHTS in situation.published and not _fits(situation, name, size):
        return {WEIGHTS: ""}
    if _get(situation.spec, "model.backbone.type") != "swin" or _get(situation.spec, key) != size:
        raise InvalidRequest(
            f"pretrained_weights={show(weights)} are of swin {size}, but the spec says "
            f"{_get(situation.spec, 'model.backbone.type')} {_get(situation.spec, key)}",
            fix=f"Pass backbone=swin_{size}, or other weights.",
        )
    values: dict[str, Any] = {}
    for pattern, key in ((r"window(\d+)", "model.backbone.swin.window_size"),
                         (r"_(224|384)(?:_|\.|$)", "model.backbone.swin.pretrain_img_size")):  # fmt: skip
        tells = re.search(pattern, name)
        if tells is None:
            continue
        right, said = int(tells[1]), situation.said.get(key)
        if said is not None and said != right and key.endswith("window_size"):
            raise InvalidRequest(
                f"{key}={said} does not fit pretrained_weights={show(name)}, which were trained with {right}",
                fix=f"Set {key} to {right}, or leave it out.",
            )
        if said is None and _get(situation.spec, key) != right:
            values[key] = right
            warnings.append(f"{key} is set to {right}, as the name of the pretrained weights says")
    return values


def _fits(situation: Situation, name: str, size: str) -> bool:
    """Whether weights that nobody asked for are this very network's: type, sizes and window."""
    spec = situation.spec
    window = re.search(r"window(\d+)", name)
    said = situation.said.get("model.backbone.swin.window_size")
    return (
        _get(spec, "model.backbone.type") == "swin"
        and _get(spec, "model.backbone.swin.type") == size
        and cross_field.swin_size(spec) == SWIN_SIZES[size]
        and (window is None or said in (None, int(window[1])))
    )


def _get(spec: Mapping[str, Any], key: str) -> Any:
    return dotted.get(spec, key)
