"""Which folders a request's data lies in: named as arguments, implied by overrides, or taken over from the parent."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mask2former_mcp.bundle import DataSource, format_rule
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


def name(asked: Asked, warnings: list[str]) -> tuple[dict[str, DatasetRef], frozenset[str]]:
    """source -> folder from arguments, and from data keys that overrides set in the published skill's own way."""
    folders = {name: DatasetRef.parse(text) for name, text in asked.arguments.items()}
    read: set[str] = set()
    for row in asked.rows:
        if row.key not in asked.said:
            continue
        implied = DatasetRef.parse(_implied_folder(row, asked.said[row.key], asked.format, warnings))
        known = folders.setdefault(row.source, implied)
        if known.uri.rstrip("/") != implied.uri.rstrip("/"):
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


def complete(asked: Asked, folders: dict[str, DatasetRef], warnings: list[str]) -> bool:
    """Fill in the folders that were not named; whether the evaluation set is a hold-out of the training set."""
    inherited = _inherited(asked, folders, warnings)
    is_holdout = False
    if asked.action == "train":
        train = _required(asked, folders, "train_datasets")
        if "eval_dataset" not in folders:
            pair = detect.split(train)
            if pair is not None:
                folders["train_datasets"], folders["eval_dataset"] = pair
                warnings.append(f"no eval_dataset: {pair[1].uri} beside {pair[0].uri} is used")
            else:
                folders["eval_dataset"], is_holdout = train, True
    elif asked.action == "evaluate":
        evaluation = _required(asked, folders, "eval_dataset")
        pair = detect.split(evaluation)
        if pair is not None and pair[0] != evaluation:
            folders["eval_dataset"] = pair[1]
            folders.setdefault("train_datasets", pair[0])
            warnings.append(f"eval_dataset holds train/ and val/: {pair[1].uri} is used")
        is_holdout = inherited.get("eval", False)
    elif asked.action == "inference":
        if "inference_dataset" not in folders:
            folders["inference_dataset"] = _required(asked, folders, "eval_dataset", "inference_dataset")
        if "eval_dataset" in folders and inherited.get("eval"):
            del folders["eval_dataset"]  # its annotation files were the parent's hold-out; inference reads none
    if asked.action == "quantize" and inherited.get("eval"):
        del folders["eval_dataset"]
    return is_holdout


def _inherited(asked: Asked, folders: dict[str, DatasetRef], warnings: list[str]) -> dict[str, bool]:
    """Take folders that were not named from the parent; role -> whether it was the parent's hold-out."""
    if asked.parent is None:
        return {}
    taken: dict[str, bool] = {}
    alone = (
        asked.action == "train" and "train_datasets" in folders
    )  # new data: the parent's validation set is not its own
    for role, source in (("train", "train_datasets"), ("eval", "eval_dataset")):
        known = asked.parent.datasets.get(role)
        if source in folders or not known or alone:
            continue
        if asked.action == "train" and role == "eval" and known.get("holdout"):
            continue
        folders[source] = DatasetRef.parse(known["uri"])
        taken[role] = bool(known.get("holdout"))
        warnings.append(f"{ARGUMENTS[source]} comes from {asked.parent.job_id}: {known['uri']}")
    return taken


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
