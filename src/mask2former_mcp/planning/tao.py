"""What is known of NVIDIA's TAO images, and a Plan must say or avoid: where they compute, and where their numbers lie.

`deploy` is their TensorRT image, `pyt` the one for everything else. The facts come from the images' published sources;
nothing here was seen inside one of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.planning.rules import Findings, Situation
from mask2former_mcp.spec import dotted

_WORKSPACE = "gen_trt_engine.tensorrt.workspace_size"
_WORKSPACE_MB = 1024


def derive(s: Situation) -> Findings:
    """One GPU where only one gives a true number, and scratch memory that the image does not round down to nothing."""
    values: dict[str, Any] = {}
    warnings: list[str] = []
    if s.runtime != "tao":
        return Findings()
    if s.action == "evaluate" and not s.deploy and int(dotted.get(s.spec, "evaluate.num_gpus")) > 1:
        values |= {"evaluate.num_gpus": 1, "evaluate.gpu_ids": [0]}
        warnings.append(
            "TAO computes the metric from the first GPU's share of the images: evaluate runs on one GPU instead of "
            f"{dotted.get(s.spec, 'evaluate.num_gpus')}, so that it covers all of them"
        )
    if s.action == "gen_trt_engine" and (size := int(dotted.get(s.spec, _WORKSPACE))) % _WORKSPACE_MB:
        whole = (size // _WORKSPACE_MB + 1) * _WORKSPACE_MB
        values[_WORKSPACE] = whole
        warnings.append(f"{_WORKSPACE}={size} is set to {whole}: TAO's image counts whole GB and drops the rest")
    return Findings(values, tuple(warnings))


def check(s: Situation) -> Iterator[str]:
    """Warnings; InvalidRequest for what these images cannot do."""
    if s.runtime != "tao":
        return
    if s.machine.gpus == 0:
        yield (
            "TAO's images compute on an NVIDIA GPU only, and this machine has none for jobs: the container will most "
            "likely fail"
        )
    yield from _deploy(s) if s.deploy else _pyt(s)


def _pyt(s: Situation) -> Iterator[str]:
    if s.metric not in (None, "mIoU"):
        raise InvalidRequest(
            f"automl.metric={s.metric}: TAO's images measure mIoU only, in every mode",
            fix="Leave automl.metric out, or use runtime=engine.",
        )
    if s.action == "train" and int(dotted.get(s.spec, "train.num_gpus")) > 1:
        yield (
            "TAO computes the mIoU of each epoch from the first GPU's share of the validation images: it ranks epochs "
            "roughly; evaluate the chosen checkpoint for a true number"
        )
    yield from _dropped(s)
    if s.action == "quantize" and s.spec["quantize"]["backend"] != "modelopt.onnx":
        yield "TAO's own actions cannot read the quantized file that its image writes: it holds bare weights"
    if s.action != "quantize" and s.parent is not None and s.parent.action == "quantize":
        raise InvalidRequest(
            f"{s.parent.job_id} is a quantize job, and TAO's images cannot read what quantize writes",
            fix="Use runtime=engine, or the training job as parent_job_id.",
        )
    if s.action == "export" and min(s.spec["export"]["input_width"], s.spec["export"]["input_height"]) <= 128:
        yield "TAO's exporter is known to fail at 128 x 128: keep 960 x 544, or use runtime=engine"


def _dropped(s: Situation) -> Iterator[str]:
    """Its loaders leave out the last images that do not fill a batch."""
    if s.action == "inference":
        role, name, section, lost = "inference", "inference", "test", "get no prediction"
    else:
        role, name, section, lost = "eval", "validation", "val", "are not measured"
    images, batch = s.images.get(role), int(dotted.get(s.spec, f"dataset.{section}.batch_size"))
    if s.action in ("train", "evaluate", "inference") and images and images % batch:
        yield (
            f"TAO drops what does not fill a batch: {images % batch} of {images} {name} images {lost}; "
            f"dataset.{section}.batch_size=1 takes all"
        )


def _deploy(s: Situation) -> Iterator[str]:
    if int(s.said.get(f"{s.action}.num_gpus", 1)) > 1:
        raise InvalidRequest(f"num_gpus: TAO's deploy image runs {s.action} on one GPU", fix="Leave num_gpus out.")
    if s.action == "evaluate":
        yield from _deploy_metric(s)
    elif s.action == "inference":
        folder = Path(str(dotted.get(s.spec, "dataset.test.img_dir")))
        if folder.is_dir() and any(folder.glob("*.jpeg")):
            yield "TAO's deploy image damages the names of pictures that end in .jpeg: name them .jpg"
        yield "TAO's deploy image writes overlay pictures only, into trt_inference/"


def _deploy_metric(s: Situation) -> Iterator[str]:
    if s.format == "ade":
        raise InvalidRequest(
            "TAO's deploy image evaluates on coco_panoptic and coco annotations, not on ade",
            fix="Evaluate the checkpoint, or use runtime=engine.",
        )
    if dotted.get(s.spec, "dataset.contiguous_id") and _shifts(s):
        yield (
            "the mIoU will be wrong: TAO's deploy image takes raw category ids for classes, and this model was trained "
            "with contiguous_id=true; evaluate the checkpoint or the ONNX file instead, or use runtime=engine"
        )
    if int(dotted.get(s.spec, "model.sem_seg_head.num_classes")) == 1:
        yield "the mIoU will be wrong: TAO's deploy image does not measure models of one class"
    yield (
        "TAO's deploy image stretches the images to the engine's size and prints the mIoU with two decimals: it "
        "differs a little from the checkpoint's"
    )


def _shifts(s: Situation) -> bool:
    """Whether raw ids differ from positions; assumed where nobody read the categories."""
    facts = s.facts.get("eval")
    return facts is None or [id_ for id_, _, _ in facts.categories] != list(range(1, len(facts.categories) + 1))
