"""Spec values of the inferred parameters, by the bundle's table; and how a Plan and its digest name the files."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former_mcp import lineage
from mask2former_mcp.jobs.plan import Checkpoint, Staging
from mask2former_mcp.planning import arguments
from mask2former_mcp.planning.merge import show
from mask2former_mcp.planning.weights import Weights
from mask2former_mcp.spec import dotted
from mask2former_mcp.staging import download
from mask2former_mcp.staging.uri import Uri

Params = Mapping[str, str | Mapping[str, str]]


def values(params: Params, said: Mapping[str, Any], chosen: Weights, home: Path) -> tuple[dict[str, Any], list[str]]:
    """(spec key -> value, notes). `key` and `resume_model` stay empty: they are filled in when a job is prepared."""
    found: dict[str, Any] = {key: portable(file.path, home) for key, file in chosen.files.items()}
    found |= {key: portable(file.path.parent, home) for key, file in _by_folder(params, chosen).items()}
    notes = [f"{key}: the folder of {file.path.name}" for key, file in _by_folder(params, chosen).items()]
    for key, function in params.items():
        if isinstance(function, Mapping):
            found[key], note = _backbone(key, function, said, chosen, home)
            notes.append(note)
        elif function in lineage.FIXED_OUTPUTS:
            found[key] = arguments.output_name(said, key, lineage.FIXED_OUTPUTS[function])
        elif function in ("parent_model", lineage.FOLDER) and key not in found:
            found[key] = ""  # the checkpoint where an engine is used, and the other way round
    return found, [note for note in notes if note]


def _by_folder(params: Params, chosen: Weights) -> dict[str, lineage.Chosen]:
    """Those files of which the spec names the folder."""
    return {key: file for key, file in chosen.files.items() if params.get(key) == lineage.FOLDER}


def defaults(params: Params, said: Mapping[str, Any], chosen: Weights) -> tuple[str, ...]:
    """Keys that get the bundle's published weights: nothing is resumed or given, and nobody said otherwise."""
    published = [key for key, function in params.items() if isinstance(function, Mapping)]
    return tuple(key for key in published if not chosen.files and said.get(key) is None)


def downloads(
    params: Params, keys: Sequence[str], spec: Mapping[str, Any], home: Path
) -> tuple[tuple[Staging, ...], list[str]]:
    """What is fetched for those keys that the final spec leaves with the published weights; and notes for the Plan."""
    staging: list[Staging] = []
    notes: list[str] = []
    for key in keys:
        described = params[key]
        assert isinstance(described, Mapping)
        target = _target(described)
        if dotted.get(spec, key) != target:
            notes.append(_SCRATCH.format(key=key))
            continue
        options = {"sha256": described["sha256"]} if "sha256" in described else {}
        host = download.check(described["link"]).hostname
        staging.append(Staging(kind="download", source=described["link"], target=target, keys=(key,), options=options))
        here = Path(target.replace("{home}", str(home)))
        notes.append(
            f"backbone weights: {here.name}, as published; "
            + ("they are in the cache" if here.exists() else f"downloaded once from {host} before the training starts")
            + f'. Without a network, put that file at {here}, or pass pretrained_weights="" to train from scratch'
        )
    return tuple(staging), notes


_SCRATCH = (
    "from scratch: {key} is empty, so the backbone starts untrained. That matters: without pretrained weights a "
    "network needs many more images and epochs to become accurate"
)


def _backbone(
    key: str, described: Mapping[str, str], said: Mapping[str, Any], chosen: Weights, home: Path
) -> tuple[str, str]:
    """Backbone weights: the file that the caller names, none where a whole network is loaded, or the published ones."""
    file = chosen.files.get(key)
    if file is not None:
        what = f"sha256 {file.sha256[:12]}" if file.uri is None else file.uri
        return portable(file.path, home), f"backbone weights: {file.path.name}, {what}"
    named = said.get(key)
    if chosen.files:
        return "", f"{key}={show(named)} is left out: the whole network starts from a checkpoint" if named else ""
    if named is not None:
        return "", _SCRATCH.format(key=key)
    return _target(described), ""


def _target(described: Mapping[str, str]) -> str:
    return f"{{home}}/{download.place(described['destination_path'])}"


def portable(path: Path, home: Path) -> str:
    """A path below the home as `{home}/...`, any other as it is."""
    for root in (home, home.resolve()):
        if path.is_relative_to(root):
            return f"{{home}}/{path.relative_to(root).as_posix()}"
    return str(path)


def checkpoint(chosen: Weights, home: Path) -> Checkpoint | None:
    """The Plan's record of the file that the job starts from."""
    for file in chosen.files.values():
        return Checkpoint(
            path=portable(file.path, home), sha256=file.sha256, epoch=file.epoch, step=file.step, metric=file.metric,
            reason=file.reason, uri=file.uri,
        )  # fmt: skip
    return None


def staging(chosen: Weights, home: Path) -> Iterator[Staging]:
    """What is to be fetched from S3 of the files that the job starts from."""
    for key, file in chosen.files.items():
        if file.uri is not None:
            yield Staging(
                kind="fetch",
                source=str(Uri.parse(file.uri).parent),
                target=portable(file.path.parent, home),
                keys=(key,),
                options={"parts": ("",), "only": (file.path.name, lineage.SIDECAR), "state": file.state},
            )


def stand_ins(params: Params, chosen: Weights, staging: Sequence[Staging], home: Path) -> dict[str, str]:
    """For the digest: what a path means, where the path itself holds an id or a time."""
    meaning = {portable(file.path, home): file.identity for file in chosen.files.values()}
    for file in _by_folder(params, chosen).values():
        meaning[portable(file.path.parent, home)] = f"folder of {file.identity}"
    for item in staging:
        if item.kind == "download":
            meaning[item.target] = f"link:{item.source}"
        if item.kind == "extract":
            meaning[item.target] = f"archive:{item.source}"
            if "/cache/ade/" in item.target:
                meaning[posixpath.dirname(item.target)] = f"archives:{posixpath.dirname(item.source)}"
    return meaning
