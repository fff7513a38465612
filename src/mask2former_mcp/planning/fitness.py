"""What speaks against a job in the data itself: annotations that do not read, images that are not there, too few of
them to measure with."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mask2former_mcp.datasets.facts import DatasetFacts, absent
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats import images
from mask2former_mcp.formats.fault import FormatError

_FEW = 10
_KINDS = 3  # of warnings that a Plan tells
_MEASURE = ("train", "evaluate", "quantize")


def problems(found: Mapping[str, DatasetFacts]) -> Iterator[str]:
    """Warnings of what was found in the annotations, by role. DatasetError where nothing can be learned from them."""
    for role, facts in found.items():
        if facts.errors:
            shown = "; ".join(problem.sentence for problem in facts.problems if problem.severity == "error")
            raise DatasetError(
                f"the {role} dataset has {facts.errors} error(s): {shown[:600]}",
                fix="Repair the annotation file; check_dataset lists every problem with file and id.",
            )
        if facts.warnings and not (role == "eval" and facts == found.get("train")):
            kinds: dict[str, str] = {}  # the first of each
            for problem in facts.problems:
                kinds.setdefault(problem.code, problem.sentence)
            shown = "; ".join(list(kinds.values())[:_KINDS])
            yield f"the {role} dataset has {facts.warnings} warning(s), see check_dataset: {shown}"


def few_images(action: str, counts: Mapping[str, int]) -> Iterator[str]:
    """A warning where the metric rests on a handful of images; `counts` is of images by role."""
    count = counts.get("eval")
    if action in _MEASURE and count is not None and count < _FEW:
        yield (
            f"only {count} validation image(s): the metric is mostly noise, and so is any choice made by it; "
            f"{_FEW} or more say something"
        )


def must_open(image: Path) -> None:
    """The one image that inference was asked for: with it unreadable there is nothing to do."""
    try:
        images.read(image)
    except FormatError as fault:
        raise DatasetError(str(fault), fix="Name an image that opens.") from fault


def must_exist(
    found: Mapping[str, DatasetFacts], places: Mapping[str, DatasetRef], values: Mapping[str, Any], dataset_format: str
) -> None:
    """The images that the annotations name, where their folder is on this disk: what is still packed, or in S3, is
    looked at when the job is prepared."""
    for role, known in found.items():
        if places["train_datasets" if role == "train" else "eval_dataset"].kind == "s3":
            continue
        split, leaf = ("train" if role == "train" else "val"), ("root_dir" if dataset_format == "ade" else "img_dir")
        folder = values.get(f"dataset.{split}.{leaf}")
        lost = absent(known, Path(folder)) if isinstance(folder, str) and Path(folder).is_dir() else []
        if lost:
            shown = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
            raise DatasetError(
                f"{len(lost)} image(s) that the {role} annotations name do not exist in {folder}: {shown}",
                fix="Put them there, or take them out of the annotation file; check_dataset lists them.",
                details={"missing": lost[:20], "folder": folder},
            )
