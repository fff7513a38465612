"""What this machine has for jobs: GPUs by UUID, or CPU slots where there is none."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mask2former_mcp.errors import NotReady

_TIMEOUT_S = 20
_NO_DEVICE = "No devices were found"  # what a driver says that has no GPU to drive
# What nvidia-smi says where no driver is loaded: true of a broken driver, and of a machine that has the tool only.
_NO_DRIVER = ("couldn't communicate with the nvidia driver", "couldn't find libnvidia-ml")
_SYSTEM = Path("/")
_NVIDIA = "0x10de"  # its vendor number on the PCI bus
_MOST_SAID = 200
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
    (`auto`, `none`, or UUIDs). No driver, or only its tool: none. NotReady: a driver does not answer; what is a GPU
    machine must not be taken for one without."""
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if setting == "none" or visible in ("", "-1") or tool is None:
        return ()
    listed = read_listing(_listing(tool))
    if visible is not None:
        listed = _named(listed, visible)
    return listed if setting == "auto" else _named(listed, setting)


def _listing(tool: str) -> str:
    try:
        found = subprocess.run([tool, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        said = f"nvidia-smi took more than {_TIMEOUT_S} s"
    except OSError as error:
        said = str(error)
    else:
        if found.returncode == 0 or _NO_DEVICE in found.stdout + found.stderr:
            return found.stdout
        said = (found.stdout + found.stderr).strip() or f"nvidia-smi ended with {found.returncode}"
        if any(words in said.lower() for words in _NO_DRIVER) and not _has_hardware(_SYSTEM):
            return ""
    raise NotReady(
        f"the NVIDIA driver does not answer: {' '.join(said.split())[:_MOST_SAID]}",
        fix="Look at `nvidia-smi` on this machine. To use the CPU all the same, set M2F_GPUS=none.",
    )


def _has_hardware(system: Path) -> bool:
    """Whether anything of NVIDIA's is on the PCI bus, driven by the kernel, or lent by Windows (WSL)."""
    if (system / "proc/driver/nvidia").exists() or (system / "dev/dxg").exists():
        return True
    vendors = (system / "sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == _NVIDIA for vendor in vendors)


def inventory(environ: Mapping[str, str], setting: str, cpu_slots: int) -> Inventory:
    """NotReady as `gpus`."""
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
