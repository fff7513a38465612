"""Which folders a request's data lies in: named as arguments, implied by overrides, or taken over from the parent."""

import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former_mcp.data_source import DataSource, format_rule
from mask2former_mcp.datasets import detect
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.lineage import Parent
from mask2former_mcp.planning.merge import show

# The seed's table speaks of sources; callers speak of arguments.
ARGUMENTS = {
    "train_datasets": "train_dataset",
    "eval_dataset": "eval_dataset",
    "inference_dataset": "inference_dataset",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The caller's side of the data step."""

    action: str
    arguments: Mapping[str, str]  # source name -> folder
    said: Mapping[str, Any]  # flat overrides
    format: str | None
    parent: Parent | None
    known_spec: Mapping[str, Any] | None  # of the weights: the parent's, or the one beside a checkpoint file
    rows: Sequence[DataSource]
    left_s: Callable[[], float]  # how many seconds the whole Plan may still take


def name(asked: Asked, warnings: list[str]) -> tuple[dict[str, DatasetRef], frozenset[str]]:
    """source -> folder from arguments, and from data keys that overrides set in the published skill's own way."""
    folders = {name: DatasetRef.parse(text) for name, text in asked.arguments.items()}
    read: set[str] = set()
    for row in asked.rows:
        if row.key not in asked.said:
            continue
        implied = DatasetRef.parse(_implied_folder(row, asked.said[row.key], asked.format, warnings))
        known = folders.setdefault(row.source, implied)
        if implied not in (known, _meant(row.source, known)):
            argument = ARGUMENTS.get(row.source, row.source)
            raise InvalidRequest(
                f"overrides {row.key}={show(asked.said[row.key])} lies in {implied.uri}, but {argument} is {known.uri}",
                fix=f"Leave {row.key} out of overrides (it follows from {argument}), or pass the other folder.",
            )
        read.add(row.key)
    for source in sorted({row.source for row in asked.rows if row.key in read}):
        if source not in asked.arguments:
            warnings.append(f"read the data keys in overrides as {ARGUMENTS.get(source, source)}={folders[source].uri}")
    return folders, frozenset(read)


def _implied_folder(row: DataSource, value: object, dataset_format: str | None, warnings: list[str]) -> str:
    """The dataset folder that a data key's value lies in; the published skill's label-map form is repaired."""
    if isinstance(value, Mapping):
        rule = format_rule(value)
        if not rule:
            raise InvalidRequest(f"{row.key}={show(value)} is not a path", fix=f"Give {row.key} a path.")
        chosen = rule.get(dataset_format or "") or next(iter(rule.values()))
        warnings.append(
            f"{row.key}={show(value)} is a rule by format, not a path (a rendering slip of the published skill); it is "
            "repaired: the format decides the file"
        )
        value = chosen
    if not isinstance(value, str):
        raise InvalidRequest(f"{row.key}={show(value)} is not a path", fix=f"Give {row.key} a path.")
    names = {row.path} if isinstance(row.path, str) else set(row.path.values())
    names |= {name.removesuffix(".tar.gz") for name in names}
    folder, name = posixpath.split(value.rstrip("/"))
    if "." in names:
        return value
    if name not in names or not folder:
        argument = ARGUMENTS.get(row.source, row.source)
        raise InvalidRequest(
            f"overrides {row.key}={show(value)}: a data path is the folder of {argument} plus one of the names "
            f"{', '.join(sorted(names))}",
            fix=f"Pass {argument}=<folder> that holds {sorted(names)[0]}, and leave {row.key} out of overrides.",
        )
    return folder


def complete(asked: Asked, folders: dict[str, DatasetRef], warnings: list[str], home: Path) -> bool:
    """Fill in the folders that were not named; whether the evaluation set is a hold-out of the training set.

    What lies in S3 gets its mirror here: only its annotation files are read.
    """
    _outline(asked, folders, home)
    _descend(folders, warnings)
    was_holdout = _inherited(asked, folders, warnings)
    _outline(asked, folders, home)
    match asked.action:
        case "train":
            train = _required(asked, folders, "train_datasets")
            if "eval_dataset" in folders:
                return False
            pair = detect.split(train)
            folders["eval_dataset"] = pair[1] if pair is not None else train
            if pair is not None:
                warnings.append(f"no eval_dataset: {pair[1].uri} beside {pair[0].uri} is used")
            return pair is None
        case "evaluate":
            _required(asked, folders, "eval_dataset")
            return was_holdout
        case "quantize":
            return _measured(asked, folders, warnings) and was_holdout
        case "inference" if "inference_dataset" not in folders:
            folders["inference_dataset"] = _required(asked, folders, "eval_dataset", "inference_dataset")
            if "eval_dataset" not in asked.arguments:
                warnings.append(_not_named(asked, folders["inference_dataset"]))
    if was_holdout:
        del folders["eval_dataset"]  # its annotation files were the parent's own; this action reads none
    return False


def _not_named(asked: Asked, ref: DatasetRef) -> str:
    """Which images are segmented where nobody chose any, and what the network has seen of them."""
    known = asked.parent.datasets if asked.parent else {}
    is_train, is_eval = (known.get(role, {}).get("uri") == ref.uri for role in ("train", "eval"))
    used = " and ".join(word for word, is_used in (("trained", is_train), ("validated", is_eval)) if is_used)
    seen = f", which the network was {used} on" if used else ""
    return f"no inference_dataset: the images of {ref.uri} are segmented{seen}; pass inference_dataset to choose others"


def _measured(asked: Asked, folders: dict[str, DatasetRef], warnings: list[str]) -> bool:
    """Whether there is validation data to measure with; a folder that was only taken over may be gone."""
    known = folders.get("eval_dataset")
    if known is not None and ("eval_dataset" in asked.arguments or known.kind == "s3" or os.path.isdir(known.uri)):
        return True
    reason = f"{folders.pop('eval_dataset').uri} is gone" if known is not None else "there is no validation data"
    warnings.append(f"no drop of the metric will be measured: {reason}. Pass eval_dataset to have it in the report")
    return False


def _outline(asked: Asked, folders: dict[str, DatasetRef], home: Path) -> None:
    for source, ref in list(folders.items()):
        folders[source] = ref.outlined(home, asked.left_s())


def _descend(folders: dict[str, DatasetRef], warnings: list[str]) -> None:
    """A folder that holds train/ and val/ stands for the one that the source means."""
    for source, ref in list(folders.items()):
        folders[source] = _meant(source, ref)
        if folders[source] == ref:
            continue
        if source == "train_datasets" and "eval_dataset" not in folders:
            continue  # both halves are used: said when the other one is filled in
        warnings.append(f"{ref.uri} is divided: {folders[source].uri} is used")


def _meant(source: str, ref: DatasetRef) -> DatasetRef:
    """The part of a folder of train/ and val/ that a source means; any other folder means itself."""
    pair = detect.split(ref)
    if pair is None and source == "train_datasets":
        return detect.train_alone(ref) or ref
    if pair is None or pair[0] == ref:
        return ref
    return pair[0] if source == "train_datasets" else pair[1]


def _inherited(asked: Asked, folders: dict[str, DatasetRef], warnings: list[str]) -> bool:
    """Take folders that were not named from the parent; whether its evaluation set was a hold-out."""
    # A fine-tuning on new data does not inherit the old data's validation set.
    if asked.parent is None or (asked.action == "train" and "train_datasets" in folders):
        return False
    was_holdout = False
    for role, source in (("train", "train_datasets"), ("eval", "eval_dataset")):
        known = asked.parent.datasets.get(role)
        if source in folders or not known:
            continue
        held_out = role == "eval" and bool(known.get("holdout"))
        if held_out and asked.action == "train":
            continue  # the same seed makes the same hold-out again
        folders[source] = DatasetRef.parse(known["uri"])
        was_holdout |= held_out
        warnings.append(f"{ARGUMENTS[source]} comes from {asked.parent.job_id}: {known['uri']}")
    return was_holdout


def _required(asked: Asked, folders: Mapping[str, DatasetRef], source: str, wanted: str | None = None) -> DatasetRef:
    if source not in folders:
        argument = ARGUMENTS[wanted or source]
        also = " or parent_job_id" if asked.action != "train" else ""
        raise InvalidRequest(
            f"{asked.action} needs {argument}: no folder was named and no parent job has one",
            fix=f"Pass {argument}=<folder with images and annotations>{also}.",
        )
    return folders[source]


def refuse_unused(asked: Asked) -> None:
    for source in asked.arguments:
        raise InvalidRequest(
            f"{ARGUMENTS.get(source, source)}: {asked.action} reads no data", fix="Leave the dataset out."
        )
