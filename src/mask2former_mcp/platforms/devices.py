"""What this machine has for jobs: GPUs by UUID, or CPU slots where there is none."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_TIMEOUT_S = 20
_QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Gpu:
    uuid: str
    index: int
    name: str
    memory_gb: float


@dataclass(frozen=True, slots=True)
class Inventory:
    """Names of what can be leased: GPU UUIDs, or `cpu:0` ... where there is no GPU."""

    kind: Literal["gpu", "cpu"]
    names: tuple[str, ...]


def gpus(environ: Mapping[str, str], setting: str = "auto") -> tuple[Gpu, ...]:
    """GPUs that jobs may use: those the driver lists, cut down by CUDA_VISIBLE_DEVICES and by the operator's setting
    (`auto`, `none`, or UUIDs). No driver, or a driver that does not answer: none."""
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if setting == "none" or tool is None:
        return ()
    try:
        found = subprocess.run([tool, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    listed = read_listing(found.stdout) if found.returncode == 0 else ()
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        listed = _named(listed, visible)
    return listed if setting == "auto" else _named(listed, setting)


def inventory(environ: Mapping[str, str], setting: str, cpu_slots: int) -> Inventory:
    found = gpus(environ, setting)
    if found:
        return Inventory("gpu", tuple(gpu.uuid for gpu in found))
    return Inventory("cpu", tuple(f"cpu:{slot}" for slot in range(cpu_slots)))


def read_listing(text: str) -> tuple[Gpu, ...]:
    """The answer of nvidia-smi to our query, one GPU a line: index, UUID, name, memory in MiB."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) >= 4 and fields[0].isdigit() and fields[1].startswith("GPU-"):
            memory = float(fields[-1]) / 1024 if fields[-1].isdigit() else 0.0
            found.append(Gpu(uuid=fields[1], index=int(fields[0]), name=fields[2], memory_gb=memory))
    return tuple(found)


def _named(listed: tuple[Gpu, ...], names: str) -> tuple[Gpu, ...]:
    """Those that a comma-separated list names by index or by (the beginning of) a UUID, in that order."""
    chosen = []
    for name in (part.strip() for part in names.split(",")):
        for gpu in listed:
            if name and (name == str(gpu.index) or gpu.uuid.startswith(name)) and gpu not in chosen:
                chosen.append(gpu)
                break
    return tuple(chosen)
