"""What this machine can do, and how to mend what it cannot. Every check stands alone and works when others break."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import psutil

from mask2former_mcp.errors import Mask2FormerError, StoreError
from mask2former_mcp.platforms import engine
from mask2former_mcp.server.services import Services

_PROBE_TIMEOUT_S = 30
_GB = 1e9
# Asked of the interpreter that will run the engine, which need not be this one; torch takes seconds to import.
_PROBE = """
import importlib.util as u, json, sys
found = {"missing": [n for n in sys.argv[1:] if u.find_spec(n) is None]}
if "torch" not in found["missing"]:
    import torch
    found["torch"] = torch.__version__
    found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Check:
    name: str
    status: Literal["ok", "warning", "error"]
    detail: str
    fix: str = ""


def examine(services: Services, platform: str | None = None) -> dict[str, Any]:
    """All checks: {ready, checks: [{name, status, detail, fix}]}. Ready means that `train` can start on `platform`
    (None: the operator's)."""
    steps: tuple[tuple[str, Callable[[Services], Check]], ...] = (
        ("python", _python),
        ("settings", _settings),
        ("home", _home),
        ("job store", _store),
        ("skill bundle", _bundle),
        ("automl", _automl),
        ("engine", _engine),
        ("memory", _memory),
        ("jobs", _jobs),
    )
    on_docker = _platform(services, platform) == "docker"
    # In containers the engine comes with the image; this Python need not have it.
    checks = [_guarded(name, step, services) for name, step in steps if not (on_docker and name == "engine")]
    if on_docker:
        checks += _docker(services)
    checks = [_once(check, checks[:number]) for number, check in enumerate(checks)]
    return {
        "ready": all(check.status != "error" for check in checks),
        "checks": [{key: value for key, value in asdict(check).items() if value} for check in checks],
    }


def _once(check: Check, earlier: Sequence[Check]) -> Check:
    """One cause, said once: broken settings would otherwise be told by every check that needs them."""
    cause = next((other.name for other in earlier if other.fix and other.detail == check.detail), None)
    return check if cause is None else replace(check, detail=f"cannot be looked at: see {cause}")


def _platform(services: Services, asked: str | None) -> str:
    try:
        return asked or services.settings.platform
    except Mask2FormerError:
        return "local"  # the settings themselves are broken, which their own check tells


def _docker(services: Services) -> list[Check]:
    # Imported here: the docker SDK is slow to import, and only who asks for Docker needs it.
    from mask2former_mcp.server import docker_check

    settings, environ = services.settings, services.environ
    try:
        taos = _tao_images(services)
        if settings.runtime == "tao":
            found = docker_check.look(settings, taos, environ)
        else:
            found = docker_check.look(settings, (settings.engine_image,), environ, taos)
        return [Check(*one) for one in found]
    except Exception as error:  # noqa: BLE001 - as above
        return [Check("docker", "error", f"{type(error).__name__}: {error}", "Report this, with the detail.")]


def _tao_images(services: Services) -> tuple[str, ...]:
    """Those that jobs under TAO run where nobody names another; none where the bundle does not read, as its own check
    tells."""
    try:
        named = [services.bundle.image(action, "tao") for action in services.bundle.actions]
    except Mask2FormerError:
        return ()
    return tuple(dict.fromkeys(image for image in named if image))


def lines(report: dict[str, Any]) -> Iterator[str]:
    for check in report["checks"]:
        yield f"[{check['status']}] {check['name']}: {check['detail']}" + (
            f" Fix: {check['fix']}" if check.get("fix") else ""
        )


def _guarded(name: str, step: Callable[[Services], Check], services: Services) -> Check:
    try:
        return step(services)
    except Mask2FormerError as error:
        return Check(name, "error", error.message, error.fix)
    except Exception as error:  # noqa: BLE001 - a doctor that falls over with its patient is of no use
        return Check(name, "error", f"{type(error).__name__}: {error}", "Report this, with the detail.")


def _python(_: Services) -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _settings(services: Services) -> Check:
    settings = services.settings
    return Check("settings", "ok", f"home {settings.home}, platform {settings.platform}, runtime {settings.runtime}")


def _home(services: Services) -> Check:
    home = services.settings.home
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Check("home", "error", f"{home} cannot be made: {error}", "Set M2F_HOME to a folder that can be made.")
    if not os.access(home, os.W_OK):
        return Check("home", "error", f"{home} cannot be written", "Set M2F_HOME to a folder that can be written.")
    free = shutil.disk_usage(home).free / _GB
    if free < 5:
        return Check("home", "warning", f"only {free:.1f} GB free at {home}", "Free some space, or move M2F_HOME.")
    return Check("home", "ok", f"{free:.0f} GB free at {home}")


def _store(services: Services) -> Check:
    services.jobs.list(limit=1)
    return Check("job store", "ok", "opens and answers")


def _bundle(services: Services) -> Check:
    found = services.bundle
    return Check("skill bundle", "ok", f"{found.name}, {len(found.actions)} actions, digest {found.digest[:12]}")


def _automl(services: Services) -> Check:
    reason = services.bundle.automl_runnable()
    if not services.bundle.automl_enabled:
        return Check("automl", "ok", "disabled by the bundle; trainings run directly")
    if reason is not None:
        return Check(
            "automl", "warning", f"enabled but not runnable: {reason}", "Regenerate the bundle's schemas and templates."
        )
    return Check(
        "automl", "ok", "enabled; a training searches with Optuna where there is a GPU, or where automl asks for trials"
    )


def _engine(services: Services) -> Check:
    settings = services.settings
    if settings.engine_command:
        return _engine_command(services)
    try:
        run = subprocess.run(
            [settings.python, "-P", "-c", _PROBE, *engine.PACKAGES],
            env=engine.importable(services.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        detail = f"{settings.python} did not answer in {_PROBE_TIMEOUT_S} s"
        return Check("engine", "warning", detail, "Try again when the machine is idle.")
    except OSError as error:
        return Check("engine", "error", f"{settings.python} cannot be started: {error}", "Correct M2F_PYTHON.")
    install = engine.how_to_install(settings.python)
    if run.returncode != 0:
        return Check("engine", "error", f"torch does not import in {settings.python}: {run.stderr[-300:]}", install)
    try:
        found = json.loads(run.stdout.splitlines()[-1])
        lacks, gpus = found["missing"], found.get("gpus", [])
    except (ValueError, IndexError, KeyError, TypeError):
        detail = f"{settings.python} does not answer as a Python does"
        return Check("engine", "error", detail, "Set M2F_PYTHON to the Python that has the engine.")
    if lacks:
        return Check("engine", "error", f"not installed in {settings.python}: {', '.join(lacks)}", install)
    return _devices(services, str(found["torch"]), gpus)


def _engine_command(services: Services) -> Check:
    command = " ".join(services.settings.engine_command)
    if engine.missing(services.settings, services.environ):
        return Check("engine", "error", f"{command}: no such command", "Correct M2F_ENGINE_COMMAND.")
    return Check("engine", "ok", f"the operator's command: {command} (not looked into)")


def _devices(services: Services, torch: str, gpus: Sequence[str]) -> Check:
    if gpus:
        return Check("engine", "ok", f"torch {torch}, GPUs: {', '.join(gpus)}")
    if shutil.which("nvidia-smi") and services.settings.gpus != "none":
        detail = f"nvidia-smi is here, but torch {torch} sees no GPU"
        return Check("engine", "warning", detail, "Install a CUDA build of torch; check the driver.")
    detail = f"torch {torch}, no GPU: one process on {os.cpu_count()} CPU cores"
    return Check("engine", "warning", detail, "Use preset='mini' here; a default network needs a GPU.")


def _memory(_: Services) -> Check:
    total = psutil.virtual_memory()
    detail = f"{total.available / _GB:.1f} of {total.total / _GB:.1f} GB available"
    if total.available < 2 * _GB:
        return Check("memory", "warning", detail, "Close other programs; even preset='mini' wants about 1 GB.")
    return Check("memory", "ok", detail)


def _jobs(services: Services) -> Check:
    left_out: list[StoreError] = []
    jobs, _ = services.jobs.list(limit=100, unreadable=left_out.append)
    if left_out:
        more = f" (and {len(left_out) - 1} more, which list_jobs names)" if len(left_out) > 1 else ""
        return Check("jobs", "warning", f"{left_out[0].message}{more}", left_out[0].fix)
    live = [job.id for job in jobs if not job.state.terminal]
    return Check("jobs", "ok", f"{len(live)} live" + (f": {', '.join(live[:5])}" if live else ""))
