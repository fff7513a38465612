"""The `preparing` phase: a Plan becomes files. Data is staged, placeholders become paths, `spec.yaml` is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mask2former_mcp.datasets.verify import verify
from mask2former_mcp.jobs.checkpoints import newest_intact, set_aside_broken
from mask2former_mcp.jobs.contained import contained
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.gathering import gathered
from mask2former_mcp.jobs.job import BUDGET, Job
from mask2former_mcp.jobs.keys import key_for
from mask2former_mcp.jobs.logs import attempt_header
from mask2former_mcp.jobs.private import write_private
from mask2former_mcp.platforms.environment import child_environment, secrets_in
from mask2former_mcp.platforms.protocol import Task
from mask2former_mcp.staging.eviction import Bound
from mask2former_mcp.staging.prepare import stage

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
        earlier = checkpoint_folder(job, spec, folders)
        broken = set_aside_broken(earlier)
        notes += [f"set aside {name}: the file is not complete" for name in broken]
        source = newest_intact(earlier)
        spec["train"][RESUME_KEY] = str(source.path) if source else ""
        notes.append(f"goes on from {source.path.name}" if source else "no checkpoint yet: starts from the beginning")
    gpus = tuple(name for name in devices if not name.startswith("cpu:"))
    _give_devices(spec, job.action, len(gpus))
    key = key_for(job, folders, environ)
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


def action_folder(job: Job, spec: Mapping[str, Any], folders: Folders) -> Path:
    """Where an action writes: its own `results_dir` if set, else `<results_dir>/<action>`; TAO's deploy image writes to
    `trt_evaluate` and `trt_inference`."""
    block = spec.get(job.action) or {}
    if own := block.get("results_dir"):
        return Path(own)
    is_deploy = job.plan.runtime == "tao" and job.action != "gen_trt_engine" and bool(block.get("trt_engine"))
    return folders.output / (f"trt_{job.action}" if is_deploy else job.action)


def checkpoint_folder(job: Job, spec: Mapping[str, Any], folders: Folders) -> Path:
    """Where the checkpoints of earlier attempts lie."""
    return gathered(job, folders) if folders.own else action_folder(job, spec, folders)


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
