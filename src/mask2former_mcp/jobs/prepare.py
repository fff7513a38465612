"""The `preparing` phase: a Plan becomes files. Data is staged, placeholders become paths, `spec.yaml` is written.

The encryption key enters here, from the server's environment, and stands in `spec.yaml` (mode 0600) and nowhere else.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mask2former_mcp.datasets.verify import verify
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.checkpoints import newest_intact, set_aside_broken
from mask2former_mcp.jobs.contained import contained
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.gathering import gathered
from mask2former_mcp.jobs.job import BUDGET, Job
from mask2former_mcp.jobs.logs import attempt_header
from mask2former_mcp.platforms.environment import child_environment, secrets_in
from mask2former_mcp.platforms.protocol import Task
from mask2former_mcp.settings import KEY_VARIABLE
from mask2former_mcp.staging.eviction import Bound
from mask2former_mcp.staging.prepare import stage

MASK = "***"
RESUME_KEY = "resume_training_checkpoint_path"
_VERIFIED: Mapping[str, tuple[str, ...]] = {"train": ("train", "val"), "evaluate": ("val",)}  # sections it opens
_FORMATS = ("coco_panoptic", "coco", "ade")
Report = Callable[[str, float], None]  # what is being done, 0..1 of it; may raise to stop


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the attempt will run. `resumed_from` is a checkpoint's file name, None from the start."""

    task: Task
    action_dir: Path  # where status.json will be
    resumed_from: str | None
    resume_epoch: int | None
    status_offset: int
    notes: tuple[str, ...]


def prepare(
    job: Job,
    folders: Folders,
    *,
    devices: Sequence[str],
    cpu_share: int,
    environ: Mapping[str, str],
    report: Report,
    bound: Bound | None = None,
) -> Prepared:
    """Stage the data and write the spec. DatasetError, InvalidRequest or OSError say what is wrong with which file."""
    folders.output.mkdir(parents=True, exist_ok=True)
    items = [item.model_dump() for item in job.plan.staging]
    stage(items, home=folders.home, job_dir=folders.job, progress=report, bound=bound)
    spec = resolved_spec(job, folders)
    _verify_data(job, spec, report)
    action_dir = action_folder(job, spec, folders)
    notes: list[str] = []
    source = None
    if job.attempt > 1 and job.action == "train":
        earlier = gathered(job, folders) if folders.own else action_dir
        broken = set_aside_broken(earlier)
        notes += [f"set aside {name}: the file is not complete" for name in broken]
        source = newest_intact(earlier)
        spec["train"][RESUME_KEY] = str(source.path) if source else ""
        notes.append(f"goes on from {source.path.name}" if source else "no checkpoint yet: starts from the beginning")
    gpus = tuple(name for name in devices if not name.startswith("cpu:"))
    _give_devices(spec, job.action, len(gpus))
    key = _key(job, folders, environ)
    if key is not None:
        spec["encryption_key"] = key
    if job.attempt > 1:
        with folders.log.open("a", encoding="utf-8") as log:
            log.write(f"{attempt_header(job.attempt)} {'; '.join(notes)}\n")
    write_private(folders.spec, yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    environment = child_environment(environ, devices=gpus, cpu_share=None if gpus else cpu_share)
    task = Task(
        job_id=job.id,
        attempt=job.attempt,
        command=tuple(folders.fill(list(job.plan.command))),
        job_dir=folders.job,
        results_dir=folders.results,
        log_file=folders.log,
        devices=gpus,
        image=job.plan.image,
        environment=environment,
        secrets=(*secrets_in(environment), *([key] if key else [])),
    )
    if job.plan.platform == "docker":
        task = contained(task, spec, folders, job.plan.digest, is_tao=job.plan.runtime == "tao")
    status = action_dir / "status.json"
    return Prepared(
        task=task,
        action_dir=action_dir,
        resumed_from=source.path.name if source else None,
        resume_epoch=source.epoch if source else None,
        status_offset=status.stat().st_size if status.exists() else 0,
        notes=tuple(notes),
    )


def resolved_spec(job: Job, folders: Folders) -> dict[str, Any]:
    """The Plan's spec with real paths and what resume_job changed; without the key."""
    spec: dict[str, Any] = folders.fill(job.plan.spec)
    for dotted, value in job.changes.items():
        if dotted.startswith(BUDGET):
            continue
        section = spec
        *path, last = dotted.split(".")
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return spec


def masked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as it may be shown."""
    return {**spec, **({"encryption_key": MASK} if spec.get("encryption_key") else {})}


def action_folder(job: Job, spec: Mapping[str, Any], folders: Folders) -> Path:
    """Where an action writes: its own `results_dir` if set, else `<results_dir>/<action>`; TAO's deploy image writes to
    `trt_evaluate` and `trt_inference`."""
    block = spec.get(job.action) or {}
    if own := block.get("results_dir"):
        return Path(own)
    is_deploy = job.plan.runtime == "tao" and job.action != "gen_trt_engine" and bool(block.get("trt_engine"))
    return folders.output / (f"trt_{job.action}" if is_deploy else job.action)


def devices_wanted(job: Job) -> int:
    """How many GPUs the spec asks for."""
    section = job.plan.spec.get(job.action) or {}
    return max(int(section.get("num_gpus") or 1), len(section.get("gpu_ids") or ()), 1)


def _verify_data(job: Job, spec: Mapping[str, Any], report: Report) -> None:
    """Annotations and image files, before any trainer starts. Only layouts that check_dataset knows are looked at."""
    dataset = spec.get("dataset")
    if not isinstance(dataset, dict) or not job.plan.datasets:
        return
    if job.study_id not in (None, job.id):
        return  # a member of a study: checked once, by the study
    roles = [
        role
        for role in _VERIFIED.get(job.action, ())
        if isinstance(section := dataset.get(role), dict) and section.get("type") in _FORMATS
    ]
    if roles:
        report("checking the data", 0.0)
        verify(dataset, roles, watch=lambda stage, done, total: report(f"checking {stage}", done / max(total, 1)))


def _give_devices(spec: dict[str, Any], action: str, gpus: int) -> None:
    """The process sees only its own GPUs, so they are numbered from 0 whatever was asked; on the CPU it is one."""
    section = spec.get(action)
    if not isinstance(section, dict):
        return
    count = max(gpus, 1)
    if "num_gpus" in section:
        section["num_gpus"] = count
    if "gpu_ids" in section:
        section["gpu_ids"] = list(range(count))
    if "gpu_id" in section:
        section["gpu_id"] = 0
    if str(section.get("device", "")).startswith("cuda:"):
        section["device"] = "cuda:0"


def job_keys(job: Job, folders: Folders, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The encryption keys that this job's files and log may hold and nobody may see: what its last attempt was given
    and the environment's, which may be another one by now. The longest first: it may begin with the other."""
    keys = {environ.get(KEY_VARIABLE), _given_key(job, folders)}
    return tuple(sorted((key for key in keys if key), key=len, reverse=True))


def hidden(text: str, keys: Sequence[str]) -> str:
    """The text with MASK in the place of each key."""
    for key in keys:
        text = text.replace(key, MASK)
    return text


def _given_key(job: Job, folders: Folders) -> str | None:
    """What stands in `spec.yaml` since the last attempt was prepared."""
    if not job.plan.key_from_environment:
        return None
    try:
        given = yaml.safe_load(folders.spec.read_text(encoding="utf-8"))["encryption_key"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    return str(given) if given else None


def _key(job: Job, folders: Folders, environ: Mapping[str, str]) -> str | None:
    """The key for the spec, where the Plan says that there is one: the environment's, else the last attempt's."""
    if not job.plan.key_from_environment:
        return None
    if not (found := environ.get(KEY_VARIABLE) or _given_key(job, folders)):
        raise InvalidRequest(
            f"the Plan takes the encryption key from the environment, but {KEY_VARIABLE} is not set",
            fix=f"Set {KEY_VARIABLE} where the server runs, then resume_job.",
        )
    return found


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, readable by this user only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
