"""Whether the Python that runs jobs has the engine: asked before a job is stored, without importing torch."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import mask2former_mcp
from mask2former_mcp.settings import Settings

# What every verb imports. torchao and safetensors serve single verbs, which say so themselves.
PACKAGES = (
    "torch", "lightning_fabric", "cv2", "pycocotools", "scipy", "onnx", "onnxscript", "onnxruntime", "tensorboard",
    "mask2former_mcp",
)  # fmt: skip
_TIMEOUT_S = 20.0
_PROBE = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))
"""


def missing(settings: Settings, environ: Mapping[str, str], packages: Sequence[str] = PACKAGES) -> tuple[str, ...]:
    """Packages that the engine's Python lacks, or the command itself where it is not there.

    Empty also where it cannot be told: an engine command of the operator's is not looked into, and an interpreter that
    is slow to answer may still run the job.
    """
    if settings.engine_command:
        command = settings.engine_command[0]
        return () if shutil.which(command, path=environ.get("PATH")) else (command,)
    if settings.python == sys.executable:
        importlib.invalidate_caches()  # it may have been installed since this process started
        return tuple(name for name in packages if importlib.util.find_spec(name) is None)
    try:
        run = subprocess.run(
            [settings.python, "-P", "-c", _PROBE, *packages],
            env=importable(environ), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S,
        )  # fmt: skip
        found = json.loads(run.stdout.splitlines()[-1])
    except OSError:
        return (settings.python,)
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return ()
    return tuple(str(name) for name in found) if isinstance(found, list) else ()


def how_to_install(python: str) -> str:
    """The command that installs the engine beside this package, a checkout's from the checkout."""
    root = Path(mask2former_mcp.__file__).parents[2]
    what = f'-e "{root}[engine]"' if (root / "pyproject.toml").is_file() else '"mask2former-mcp[engine]"'
    return f'Install the engine: {python} -m pip install "torch>=2.11" {what} (without a GPU, the CPU build of torch).'


def importable(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a process of this package: in a checkout that is not installed it is found by PYTHONPATH only."""
    root = Path(mask2former_mcp.__file__).parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return dict(environ)
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(root), environ.get("PYTHONPATH"))))}
