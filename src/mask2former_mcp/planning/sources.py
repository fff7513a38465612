"""Dataset arguments -> where every data key of the spec points, what must be staged first, and what the data says.

A dataset is a folder with conventional names; the bundle's data sources say which key reads which name of which folder.
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mask2former_mcp.data_source import DataSource
from mask2former_mcp.datasets import detect, sources
from mask2former_mcp.datasets.facts import DatasetFacts, facts
from mask2former_mcp.datasets.reference import DatasetRef, find, unread_images
from mask2former_mcp.errors import DatasetError, InvalidRequest
from mask2former_mcp.formats import label_map
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.formats.images import listing
from mask2former_mcp.formats.names import ANNOTATIONS
from mask2former_mcp.jobs.plan import Staging
from mask2former_mcp.planning import fitness, folders
from mask2former_mcp.planning.folders import ARGUMENTS, Asked
from mask2former_mcp.planning.inferred import portable
from mask2former_mcp.planning.merge import show
from mask2former_mcp.settings import Settings
from mask2former_mcp.spec import dotted
from mask2former_mcp.staging import holdout

HOLDOUT_FRACTION = holdout.FRACTION
HOLDOUT_SEED = 1234
# Which folders an action really opens; the others are filled in when they are there.
_OPENED = {
    "train": ("train_datasets", "eval_dataset"),
    "evaluate": ("eval_dataset",),
    "inference": ("inference_dataset",),
    "quantize": ("eval_dataset",),  # where there is one: the drop of the metric is measured on it
}
# Whose annotation file says which format it is.
_DECISIVE = {
    "train": ("train_datasets",),
    "evaluate": ("eval_dataset",),
    "inference": ("train_datasets", "eval_dataset"),
    "quantize": ("train_datasets", "eval_dataset"),
}
_ANNOTATION_KEYS = {"coco_panoptic": "panoptic_json", "coco": "instance_json", "ade": "annot_file"}


@dataclass(frozen=True, slots=True)
class Data:
    """What the data step found; `facts` is keyed by `train` and `eval`, `images` also by `inference`."""

    format: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    staging: tuple[Staging, ...] = ()
    datasets: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, DatasetFacts] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    labels: tuple[tuple[int, str], ...] = ()  # (id, name) in the label map that the action reads, in its order
    warnings: tuple[str, ...] = ()
    read: frozenset[str] = frozenset()  # override keys that were understood as dataset folders


def gather(asked: Asked, settings: Settings) -> Data:
    """Resolve every dataset of one request. DatasetError and InvalidRequest name file, folder and rule."""
    if not asked.rows:
        folders.refuse_unused(asked)
        return Data()
    warnings: list[str] = []
    places, read = folders.name(asked, warnings)
    is_holdout = folders.complete(asked, places, warnings, settings.home)
    dataset_format = _format(asked, places)
    values, staging = _resolve(asked, places, dataset_format, warnings)
    found = {
        role: facts(places[source], dataset_format, home=settings.home, deadline_s=asked.left_s())
        for role, source in (("train", "train_datasets"), ("eval", "eval_dataset"))
        if source in places and (source in _OPENED[asked.action] or asked.known_spec is None)
    }
    images = {role: known.images for role, known in found.items()}
    if asked.action == "inference" and places["inference_dataset"].is_image:
        fitness.must_open(places["inference_dataset"].path)
        images["inference"] = 1
    elif asked.action == "inference" and Path(pictures := str(values.get("dataset.test.img_dir", ""))).is_dir():
        images["inference"] = len(listing(Path(pictures)))
        if unread := unread_images(Path(pictures)):
            warnings.append(unread)
    datasets = {
        role: _described(places[source], dataset_format, found.get(role))
        for role, source in (("train", "train_datasets"), ("eval", "eval_dataset"), ("inference", "inference_dataset"))
        if source in places
    }
    if is_holdout:
        split = _hold_out(dataset_format, values, shared=places.get("train_datasets") == places["eval_dataset"])
        if whole := sorted(key for key in values if _is_other(key, dataset_format)):
            rule = f"a hold-out does not divide what {dataset_format} does not read"
            warnings.append(f"left out, {rule}: {', '.join(whole)}")
        values = {**{key: value for key, value in values.items() if key not in whole}, **split.values}
        staging.append(split.staging)
        rest, images["eval"] = holdout.sizes(found["eval"].images, HOLDOUT_FRACTION)
        if "train" in images:
            images["train"] = rest
        datasets["eval"] = {**datasets["eval"], "holdout": {"fraction": HOLDOUT_FRACTION, "seed": HOLDOUT_SEED}}
        warnings.append(
            f"no eval_dataset: {images['eval']} of {found['eval'].images} training images are held out for validation "
            f"(seed {HOLDOUT_SEED}); the annotation files {split.staging.options['train']} and "
            f"{split.staging.options['val']} are written in the job's folder"
        )
    elif asked.action == "train" and places["train_datasets"] == places["eval_dataset"]:
        warnings.append(
            "train_dataset and eval_dataset are the same folder: the metric will say nothing about new images"
        )
    fitness.must_exist(found, places, values, dataset_format)
    warnings = [*fitness.few_images(asked.action, images), *warnings]
    labels = _labels(values.get("dataset.label_map"), staging, places, settings.home, asked.left_s())
    return Data(
        dataset_format, _portable(values, settings.home), tuple(_portable_staging(staging, settings.home)), datasets,
        found, images, labels, tuple(warnings), read,
    )  # fmt: skip


def _portable(values: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """Paths in the cache (what is mirrored from S3) without this machine's home."""
    inside = (f"{home}/", f"{home.resolve()}/")
    return {
        key: portable(Path(value), home) if isinstance(value, str) and value.startswith(inside) else value
        for key, value in values.items()
    }


def _portable_staging(staging: Sequence[Staging], home: Path) -> Iterator[Staging]:
    for item in staging:
        yield item.model_copy(update=_portable({"source": item.source, "target": item.target}, home))


# --- what they hold --------------------------------------------------------------------------------------------------


def _format(asked: Asked, folders: Mapping[str, DatasetRef]) -> str:
    """Named, or the parent's, or found out from the files."""
    declared = {
        key: asked.said[key] for key in sorted(asked.said) if key.startswith("dataset.") and key.endswith(".type")
    }
    wanted = asked.format
    for key, value in declared.items():
        if wanted is not None and value != wanted:
            raise InvalidRequest(
                f"overrides {key}={show(value)} and the dataset format {wanted} disagree",
                fix=f"Leave {key} out of overrides: dataset.train, val and test take their type from dataset_format.",
            )
        wanted = str(value)
    if wanted is not None:
        return wanted
    decisive = _DECISIVE[asked.action]
    first = next((folders[source] for source in decisive if source in folders), None)
    known = _known_format(asked)
    if known is not None and (first is None or find(first, ANNOTATIONS.get(known, "")) is not None):
        return known
    if first is None:
        raise InvalidRequest(
            f"{asked.action} needs a dataset: no folder with annotations was named and no parent job has one",
            fix="Pass parent_job_id, or train_dataset or eval_dataset: the data that the weights are made for.",
        )
    return detect.detect_format(first)


def _known_format(asked: Asked) -> str | None:
    """What the weights were trained with."""
    if asked.parent is not None:
        for known in asked.parent.datasets.values():
            if known.get("format"):
                return str(known["format"])
    try:
        return str(dotted.get(asked.known_spec or {}, "dataset.train.type"))
    except KeyError:
        return None


def _resolve(
    asked: Asked, folders: Mapping[str, DatasetRef], dataset_format: str, warnings: list[str]
) -> tuple[dict[str, Any], list[Staging]]:
    """Values of every row whose folder is known. A folder that this action does not open may be incomplete or gone."""
    values: dict[str, Any] = {}
    staging: dict[str, Staging] = {}

    def add(rows: Sequence[DataSource], places: Mapping[str, DatasetRef]) -> None:
        resolved = sources.resolve(rows, places, dataset_format)
        values.update(resolved.values)
        warnings.extend(resolved.notes)
        for item in resolved.staging:
            earlier = staging.get(item["target"])
            keys = (*(earlier.keys if earlier else ()), *item["keys"])
            options = dict(item["options"])
            if earlier and item["kind"] == "fetch":  # train/ and val/ of one mirror
                options["parts"] = tuple(dict.fromkeys((*earlier.options["parts"], *options["parts"])))
            staging[item["target"]] = Staging(**{**item, "keys": tuple(dict.fromkeys(keys)), "options": options})

    for source in dict.fromkeys(row.source for row in asked.rows):
        rows = [row for row in asked.rows if row.source == source]
        if source in _OPENED[asked.action]:
            add(rows, folders)
            continue
        reason = f"no {ARGUMENTS.get(source, source)} was named"
        if source in folders:
            try:
                add(rows, folders)
                continue
            except DatasetError as error:
                reason = error.message
        # The little that is read of a folder the action does not open (the label map) may come from another one.
        rows = [row for row in rows if row.is_read(dataset_format)]
        stand_in = folders.get("eval_dataset", folders.get("inference_dataset"))
        known = {row.key: _existing(asked.known_spec, row.key) for row in rows}
        if rows and all(known.values()):
            values.update(known)
        elif rows and stand_in is not None:
            try:
                add(rows, {**folders, source: stand_in})
            except DatasetError as error:
                raise DatasetError(f"{error.message} ({reason})", fix=error.fix, details=error.details) from error
        elif source in folders:
            warnings.append(f"left out, {asked.action} does not read it: {reason}")
    return values, list(staging.values())


def _existing(spec: Mapping[str, Any] | None, key: str) -> str | None:
    """A file that the weights' own spec names, if it is still there."""
    try:
        value = dotted.get(spec or {}, key)
    except KeyError:
        return None
    return value if isinstance(value, str) and value and Path(value).is_file() else None


def _labels(
    path: Any, staging: Sequence[Staging], places: Mapping[str, DatasetRef], home: Path, left_s: float
) -> tuple[tuple[int, str], ...]:
    """The classes of a label map on this disk; none where it is broken (the dataset's facts say so) or elsewhere."""
    for item in staging:
        if item.kind == "label_map":  # it will hold the categories of this dataset
            ref = next(ref for ref in places.values() if ref.uri == item.options["dataset"])
            known = facts(ref, item.options["format"], home=home, deadline_s=left_s)
            return tuple((id_, name) for id_, name, _ in known.categories)
    if not isinstance(path, str) or not Path(path).is_file():
        return ()
    try:
        return tuple((label.id, label.name) for label in label_map.read(Path(path)))
    except FormatError:
        return ()


def _is_other(key: str, dataset_format: str) -> bool:
    """Annotation files of other formats: a hold-out does not divide them, so they are not handed on undivided."""
    leaf = key.rsplit(".", 1)[-1]
    return leaf in _ANNOTATION_KEYS.values() and leaf != _ANNOTATION_KEYS[dataset_format]


def _described(ref: DatasetRef, dataset_format: str, known: DatasetFacts | None) -> dict[str, Any]:
    described: dict[str, Any] = {"uri": ref.uri, "format": dataset_format}
    if known is not None:
        described |= {"hashes": dict(sorted(known.hashes.items())), "images": known.images}
    return described


@dataclass(frozen=True, slots=True)
class _HoldOut:
    values: Mapping[str, Any]
    staging: Staging


def _hold_out(dataset_format: str, values: Mapping[str, Any], *, shared: bool) -> _HoldOut:
    """Two annotation files in the job's folder stand for one; `shared`: the training keys read the same file."""
    leaf = _ANNOTATION_KEYS[dataset_format]
    source = values[f"dataset.val.{leaf}"]
    name = posixpath.basename(source)
    train, val = f"{{job_dir}}/holdout/train/{name}", f"{{job_dir}}/holdout/val/{name}"
    divided = {f"dataset.val.{leaf}": val, **({f"dataset.train.{leaf}": train} if shared else {})}
    options = {"format": dataset_format, "fraction": HOLDOUT_FRACTION, "seed": HOLDOUT_SEED, "train": train, "val": val}
    staged = Staging(kind="split", source=source, target="{job_dir}/holdout", keys=tuple(divided), options=options)
    return _HoldOut(divided, staged)
