"""Where a job runs and writes: platform, runtime, image, results folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mask2former_mcp.bundle import Bundle
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.contained import SYSTEM
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import ActionRequest
from mask2former_mcp.settings import Settings
from mask2former_mcp.staging.uri import SCHEME, Uri

Runtime = Literal["engine", "tao"]


@dataclass(frozen=True, slots=True)
class Place:
    platform: str
    runtime: Runtime
    image: str | None
    results_dir: str | None  # absolute, or s3://; None: the job's own folder
    missing: tuple[str, ...]  # what keeps a job from starting here today


def choose(request: ActionRequest, action: str, bundle: Bundle, settings: Settings, *, tensorrt: bool) -> Place:
    """Arguments first, then the operator's settings. InvalidRequest for an image that may not run."""
    platform = request.platform or settings.platform
    runtime: Runtime = "tao" if (request.runtime or settings.runtime) == "tao" else "engine"
    missing: list[str] = []
    if platform == "local" and runtime == "tao" and not settings.engine_command:
        missing.append("runtime=tao runs in NVIDIA's container, and platform=local starts no containers")
    image = _image(request, action, bundle, settings, platform, runtime, tensorrt)
    results_dir = None
    if request.results_dir is not None:
        results_dir = _results_dir(request.results_dir, settings, may_exist=request.run_name is not None)
    return Place(platform, runtime, image, results_dir, tuple(missing))


def _image(
    request: ActionRequest, action: str, bundle: Bundle, settings: Settings, platform: str, runtime: str, tensorrt: bool
) -> str | None:
    default = _default_image(action, bundle, settings, platform, runtime, tensorrt)
    if request.image is None or request.image == default:
        return default
    if platform == "local" and runtime == "engine":
        raise InvalidRequest(
            f"image={request.image!r}: platform=local with runtime=engine runs no container", fix="Leave image out."
        )
    if request.image not in settings.images:
        allowed = ", ".join(settings.images) or "none"
        raise InvalidRequest(
            f"image={request.image!r} is not on the operator's allow-list ({allowed})",
            fix="Leave image out for the default, or ask the operator to add it to `images` in config.toml.",
        )
    return request.image


def _default_image(
    action: str, bundle: Bundle, settings: Settings, platform: str, runtime: str, tensorrt: bool
) -> str | None:
    if platform == "local" and runtime == "engine":
        return None
    if platform == "docker" and runtime == "engine":
        return settings.engine_image
    deploy = tensorrt and bundle.deploy is not None and action in bundle.deploy.actions
    source = bundle.deploy if deploy and bundle.deploy is not None else bundle
    return source.image(action, runtime)


def _results_dir(text: str, settings: Settings, *, may_exist: bool) -> str:
    """A new or empty folder that does not lie in the home, or an `s3://` prefix, of which nobody is asked here."""
    if text.lower().startswith(SCHEME):
        return str(_results_prefix(text))
    if "://" in text:
        raise InvalidRequest(f"results_dir={text!r}: only local folders and s3:// prefixes", fix="Pass a local folder.")
    path = Path(os.path.expanduser(text))
    if not path.is_absolute():
        raise InvalidRequest(f"results_dir={text!r} is not an absolute path", fix="Pass an absolute path.")
    path = Path(os.path.normpath(path))
    fix = "Pass a new or empty folder, or leave results_dir out for the job's own folder."
    if path == Path("/") or path == settings.home or path.is_relative_to(settings.home / "jobs"):
        raise InvalidRequest(f"results_dir={text!r} is the server's own folder or the root", fix=fix)
    if any(place.is_relative_to(system) for system in SYSTEM for place in (path, path.resolve())):
        raise InvalidRequest(f"results_dir={text!r} belongs to the system", fix=fix)
    try:
        if path.exists() and not path.is_dir():
            raise InvalidRequest(f"results_dir={text!r} is a file", fix=fix)
        if above := next((parent for parent in path.parents if parent.is_file()), None):
            raise InvalidRequest(f"results_dir={text!r} lies below {above}, which is a file", fix=fix)
        # With a run_name the folder may be full because that very job filled it; submitting decides.
        if path.is_dir() and not may_exist and any(path.iterdir()):
            raise InvalidRequest(
                f"results_dir={text!r} is not empty: earlier results would be mixed with new ones", fix=fix
            )
    except OSError as cause:
        raise InvalidRequest(f"results_dir={text!r} cannot be used: {cause.strerror}", fix=fix) from cause
    return str(path)


def _results_prefix(text: str) -> Uri:
    fix = "Pass s3://bucket/prefix, of which nothing exists yet."
    try:
        uri = Uri.parse(text)
    except ValueError as cause:
        raise InvalidRequest(f"results_dir={text[:200]!r}: {cause}", fix=fix) from cause
    if not uri.key:
        raise InvalidRequest(f"results_dir={text!r} is a whole bucket", fix=fix)
    return uri


def refuse_among_data(results_dir: str | None, datasets: Mapping[str, Any]) -> None:
    """Results in a dataset's prefix would change the dataset: the next Plan would mean other bytes."""
    if results_dir is None or not results_dir.startswith(SCHEME):
        return
    for role, known in datasets.items():
        text = str(known.get("uri", ""))
        if text.startswith(SCHEME) and Uri.parse(text).holds(Uri.parse(results_dir)):
            raise InvalidRequest(
                f"results_dir={results_dir!r} lies in the {role} dataset {text}",
                fix="Name a prefix outside of the data.",
            )


def devices(said: Mapping[str, Any], action: str) -> dict[str, Any]:
    """`num_gpus` and `gpu_ids` belong together: the one that was not said follows from the other."""
    count, ids = said.get(f"{action}.num_gpus"), said.get(f"{action}.gpu_ids")
    if isinstance(count, int) and not isinstance(count, bool) and ids is None and 0 < count <= 4096:
        return {f"{action}.gpu_ids": list(range(count))}
    if isinstance(ids, list) and ids and count is None:
        return {f"{action}.num_gpus": len(ids)}
    return {}


def check_gpus(
    spec: Mapping[str, Any], action: str, machine: Machine, platform: str
) -> tuple[list[str], tuple[str, ...]]:
    """Counts against the machine: (warnings, what keeps it from starting). `1` is always accepted: without a GPU it
    means one CPU process. A Plan for containers needs no GPU where it is made."""
    block = spec.get(action, {})
    wanted = block.get("num_gpus")
    if wanted is None:
        return [], ()
    warnings = [f"{machine.trouble} A job would wait for it, and then fail."] if machine.trouble else []
    missing: tuple[str, ...] = ()
    if wanted != 1 and wanted > machine.gpus:
        have = f"{machine.gpus} GPU(s)" if machine.gpus else machine.trouble or "no GPU"
        what = f"{action}.num_gpus={wanted}, but platform={platform} has {have}"
        if platform == "docker":
            missing = (what,)
        else:
            raise InvalidRequest(
                what,
                fix=f"Set num_gpus to at most {max(1, machine.gpus)}"
                + ("; 1 means one process on the CPU here." if not machine.gpus else "."),
            )
    ids = block.get("gpu_ids")
    if ids is not None and len(ids) != wanted:
        raise InvalidRequest(
            f"{action}.num_gpus={wanted} and {action}.gpu_ids={ids} disagree",
            fix="Leave gpu_ids out: which GPUs a job gets is decided when it starts.",
        )
    if block.get("num_nodes", 1) > 1 and platform in ("local", "docker"):
        raise InvalidRequest(
            f"{action}.num_nodes={block['num_nodes']}: platform={platform} is one node", fix="Leave it out."
        )
    if action != "train" and not machine.gpus:
        warnings.append("no GPU here: one process on the CPU")
    return warnings, missing
