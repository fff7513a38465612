"""What this machine can give a job."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from mask2former_mcp.errors import NotReady
from mask2former_mcp.platforms import devices
from mask2former_mcp.settings import Settings


@dataclass(frozen=True, slots=True)
class Machine:
    """`gpus` is how many a job may lease; `gpu_memory_gb` is the smallest of theirs, None without a GPU. `trouble` says
    why the GPUs could not be asked for, where that is so."""

    gpus: int
    gpu_memory_gb: float | None
    cpus: int
    memory_gb: float
    trouble: str = ""


def look(settings: Settings, environ: Mapping[str, str] = os.environ) -> Machine:
    """Ask the driver and the operating system."""
    found: tuple[devices.Gpu, ...] = ()
    trouble = ""
    try:
        found = devices.gpus(environ, settings.gpus)
    except NotReady as error:
        trouble = f"{error.message}. {error.fix}"
    return Machine(
        gpus=len(found),
        gpu_memory_gb=min((gpu.memory_gb for gpu in found), default=None),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=psutil.virtual_memory().total / 2**30,
        trouble=trouble,
    )


def free_gb(folder: Path) -> float:
    """Room on the disk where the folder is, or will be."""
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    return shutil.disk_usage(there).free / 1e9
