"""Where a job's inputs come from: the spec parameters that are inferred, and which checkpoint of a parent is used.

Plain data in, plain data out. The inference functions are those that a bundle's `spec_params` names: `key`,
`output_dir`, `parent_model`, `parent_model_folder`, `resume_model`, `ptm_if_no_resume_model`, `create_onnx_file`,
`create_engine_file`, and the `{link, destination_path}` form for published weights.
"""

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mask2former_mcp.errors import InvalidRequest, NotFound, WrongState

_NONE: Mapping[str, Any] = MappingProxyType({})

# Matched against the basename only: a folder called `epoch_7` must never decide which file is taken.
CHECKPOINT_NAME = re.compile(r"model_epoch_(\d{3,})_step_(\d{5,})\.pth")
_EPOCH_CHOICE = re.compile(r"epoch=(\d+)(?:,\s*step=(\d+))?")
SIDECAR = "experiment.yaml"  # the resolved spec that train writes beside its checkpoints
WEIGHT_SUFFIXES = (".pth", ".tlt", ".pt")

Writer = Literal["train", "export", "quantize", "gen_trt_engine"]
_SUFFIXES: Mapping[Writer, tuple[str, ...]] = MappingProxyType(
    {"train": (".pth",), "export": (".onnx",), "quantize": (".pth", ".onnx"), "gen_trt_engine": (".engine",)}
)


@dataclass(frozen=True, slots=True)
class Parent:
    """A job whose artifacts another job uses.

    `results_dir` is absolute; `epoch_metrics` maps a zero-based epoch to what was measured after it;
    `datasets` is the parent Plan's `datasets` (role -> {uri, format, ...}).
    """

    job_id: str
    action: str
    spec: Mapping[str, Any]
    results_dir: Path
    epoch_metrics: Mapping[int, Mapping[str, float]]
    state: str
    datasets: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = "engine"
    parent_job_id: str | None = None
    metric: str | None = None  # what it was to maximise


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier, finished job of one action really took; the estimate of a similar job is made from it.

    `seconds` are all of it, `step_s` those of one step, without start and validation, where the job said so.
    """

    job_id: str
    spec: Mapping[str, Any]
    steps: int
    seconds: float
    step_s: float | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The file a job starts from, and why this one.

    Of a file in S3, `path` is where it will be when the job starts, `uri` where it comes from, `state` the digest of
    (URI, ETag, size); it has no `sha256` because nobody has read it yet.
    """

    path: Path
    sha256: str
    reason: str
    epoch: int | None = None
    step: int | None = None
    metric: float | None = None
    uri: str | None = None
    state: str = ""

    @property
    def identity(self) -> str:
        """Which bytes are meant, on any machine."""
        return f"sha256:{self.sha256}" if self.uri is None else f"s3:{self.uri}:{self.state}"


# --- the file a job starts from --------------------------------------------------------------------------------------


def parent_model(
    parent: Parent, key: str, choice: str | None = None, *, wanted: Writer | None = None, metric: str = "mIoU"
) -> Chosen:
    """The file of `parent` that spec key `key` needs: a checkpoint, an ONNX file or a TensorRT engine.

    `choice` is `best` (the default), `latest` or `epoch=N[,step=M]`, and only a training job has a choice. `wanted` is
    the action that writes such a file, where the key alone does not tell (`writer`).
    """
    _must_have_ended(parent)
    wanted = wanted or writer(key)
    suffixes = _SUFFIXES[wanted]
    if parent.action != wanted:
        raise InvalidRequest(
            f"{key} takes a file of {_a(wanted)} job, but {parent.job_id} is {_a(parent.action)} job"
            + (f" (its own parent is {parent.parent_job_id})" if parent.parent_job_id else ""),
            fix=f"Pass the id of {_a(wanted)} job as parent_job_id, or the file itself.",
        )
    if wanted == "train":
        return checkpoint(parent, choice, metric=metric)
    if choice is not None:
        raise InvalidRequest(
            f"checkpoint={choice!r} chooses among training checkpoints, but {parent.job_id} is {_a(parent.action)} job",
            fix="Leave checkpoint out, or pass a train job as parent_job_id.",
        )
    folder = parent.results_dir / wanted
    named = (path for suffix in suffixes for path in folder.glob(f"*{suffix}"))
    files = sorted(path for path in named if _is_usable(path) and _lies_in(path, parent.results_dir))
    if not files:
        raise NotFound(
            f"{parent.job_id} ({parent.state}) has no *{' or *'.join(suffixes)} file in its results",
            fix=f"Run {wanted} again and wait until it has succeeded, or pass the file itself.",
        )
    return Chosen(files[0], sha256(files[0]), f"the {files[0].suffix[1:]} file that {parent.job_id} wrote")


def checkpoint(parent: Parent, choice: str | None = None, *, metric: str = "mIoU") -> Chosen:
    """Choose among the checkpoints of a training job by the recorded metric, by epoch, or the latest if asked."""
    files = checkpoints(parent.results_dir / "train")
    if not files:
        raise NotFound(
            f"{parent.job_id} ({parent.state}) has no checkpoint named model_epoch_NNN_step_NNNNN.pth",
            fix="Choose another parent_job_id (list_jobs), or resume this one with resume_job.",
        )
    choice = (choice or "best").strip()
    if choice == "best":
        return _best(parent, files, metric)
    if choice == "latest":
        (epoch, step), path = max(files.items(), key=lambda item: (item[0][1], item[0][0]))
        return Chosen(path, sha256(path), f"the latest checkpoint of {parent.job_id}, as asked", epoch, step)
    match = _EPOCH_CHOICE.fullmatch(choice)
    if match is None:
        raise InvalidRequest(
            f"checkpoint={choice!r} is neither best, latest, epoch=N, epoch=N,step=M nor an existing file",
            fix=f"{parent.job_id} has {_named(files)}.",
        )
    epoch, wanted_step = int(match[1]), match[2]
    steps = [s for e, s in files if e == epoch and (wanted_step is None or s == int(wanted_step))]
    if not steps:
        raise NotFound(f"{parent.job_id} has no checkpoint {choice}", fix=f"It has {_named(files)}.")
    path = files[epoch, max(steps)]
    return Chosen(
        path, sha256(path), f"{choice} of {parent.job_id}, as asked", epoch, max(steps),
        _finite(parent.epoch_metrics.get(epoch, _NONE).get(metric)),
    )  # fmt: skip


def _best(parent: Parent, files: Mapping[tuple[int, int], Path], metric: str) -> Chosen:
    measured = {
        epoch: value
        for epoch, values in parent.epoch_metrics.items()
        if (value := _finite(values.get(metric))) is not None
    }
    rated = {key: measured[key[0]] for key in files if key[0] in measured}
    if not rated and len(files) == 1:
        ((epoch, step), path) = next(iter(files.items()))
        reason = f"the only checkpoint of {parent.job_id}; no {metric} was recorded for it"
        return Chosen(path, sha256(path), reason, epoch, step)
    if not rated:
        raise NotFound(
            f"best is undecided: {parent.job_id} recorded no {metric} for any epoch that kept a checkpoint",
            fix=f"Say which one: checkpoint=latest or checkpoint=epoch=N; it has {_named(files)}.",
        )
    epoch, step = max(rated, key=lambda key: (rated[key], key))
    reason = f"best {metric} {rated[epoch, step]:.4f} of {len(rated)} measured checkpoint(s) of {parent.job_id}"
    top = max(measured, key=lambda e: measured[e])
    if measured[top] > rated[epoch, step]:
        reason += f" (epoch {top} reached {measured[top]:.4f}, but kept no checkpoint)"
    path = files[epoch, step]
    return Chosen(path, sha256(path), reason, epoch, step, rated[epoch, step])


def checkpoints(folder: Path) -> dict[tuple[int, int], Path]:
    """(epoch, step) -> file, of one folder only; links (`..._latest.pth`) and empty files are not candidates."""
    found = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            match = CHECKPOINT_NAME.fullmatch(path.name)
            if match and not path.is_symlink() and _is_usable(path) and _lies_in(path, folder.parent):
                found[int(match[1]), int(match[2])] = path
    return found


def resume_model(results_dir: Path) -> Chosen | None:
    """The newest checkpoint of the current job's own results folder; None when it has none yet."""
    files = checkpoints(results_dir / "train")
    if not files:
        return None
    (epoch, step), path = max(files.items(), key=lambda item: (item[0][1], item[0][0]))
    return Chosen(path, sha256(path), "the newest checkpoint of this job's own results", epoch, step)


def explicit_file(argument: str, text: str, suffixes: tuple[str, ...] = WEIGHT_SUFFIXES) -> Chosen:
    """A model file that the caller names."""
    path = Path(os.path.expanduser(text))
    if not path.is_absolute():
        raise InvalidRequest(
            f"{argument}={text!r} is not an absolute path", fix="Pass the file's absolute path, or s3://bucket/key."
        )
    require_suffix(argument, text, suffixes)
    if not _is_usable(path):
        raise NotFound(
            f"{argument}={text[:200]!r} {_state(path)}", fix="Check the path, or pass parent_job_id instead."
        )
    epoch, step = named_position(path.name)
    return Chosen(path.resolve(), sha256(path), f"the file named by {argument}", epoch, step)


def require_suffix(argument: str, text: str, suffixes: tuple[str, ...]) -> None:
    """InvalidRequest for a file that cannot be of the right kind."""
    if not text.lower().endswith(suffixes):
        raise InvalidRequest(
            f"{argument}={text!r} does not end in {' or '.join(suffixes)}", fix=f"Pass a {' or '.join(suffixes)} file."
        )


def named_position(name: str) -> tuple[int, int] | tuple[None, None]:
    """(epoch, step) of a checkpoint's file name, where it says so."""
    match = CHECKPOINT_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else (None, None)


def is_choice(text: str) -> bool:
    """Whether `checkpoint` speaks of a parent's checkpoints rather than of a file."""
    return text in ("best", "latest") or text.startswith("epoch=")


# --- the other inference functions -----------------------------------------------------------------------------------

FOLDER = "parent_model_folder"  # the folder in which the file of parent_model lies
FIXED_OUTPUTS: Mapping[str, str] = MappingProxyType(
    {
        "output_dir": "{results_dir}",
        "create_onnx_file": "{results_dir}/export/model.onnx",
        "create_engine_file": "{results_dir}/gen_trt_engine/model.engine",
    }
)


def writer(key: str) -> Writer:
    """The action whose jobs write what a spec key takes, by the key's own name."""
    if key.endswith("onnx_file"):
        return "export"
    return "gen_trt_engine" if key.endswith("trt_engine") else "train"


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _must_have_ended(parent: Parent) -> None:
    if parent.state in ("queued", "preparing", "running", "stopping"):
        raise WrongState(
            f"{parent.job_id} is still {parent.state}: which of its files is the right one is not decided yet",
            fix=f"wait_for_job {parent.job_id}, then call this again.",
        )


def _named(files: Mapping[tuple[int, int], Path]) -> str:
    names = [f"epoch={epoch},step={step}" for epoch, step in sorted(files)]
    return "; ".join(names if len(names) <= 10 else [*names[:5], "...", *names[-5:]])


def _is_usable(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def _lies_in(path: Path, folder: Path) -> bool:
    """Not by a link that leads out: what runs in a container may leave one to a file that it must not read."""
    return path.resolve().is_relative_to(folder.resolve())


def _state(path: Path) -> str:
    """Why a file cannot be used, in words."""
    try:
        return "is empty" if path.is_file() else "is not a file" if path.exists() else "does not exist"
    except OSError as cause:
        return f"cannot be read: {cause.strerror}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def sha256(path: Path) -> str:
    """Hex digest of a file; read once per (path, size, modification time) in this process."""
    facts = path.stat()
    return _sha256(str(path), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
