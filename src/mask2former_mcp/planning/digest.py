"""The Plan's digest: the same work has the same digest on every machine, for every job id, at any time.

It covers action, spec, bundle, datasets (URIs and the hashes of their annotation files), platform, runtime and image.
Results paths enter as `{results_dir}`, the home as `{home}`, a model file as the hash of its bytes, and an archive's
cache folder as the archive it comes from. How many loader processes our engine uses enters only where the
caller set it: else it follows from the machine. The batches are the same.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def digest(
    *,
    action: str,
    spec: Mapping[str, Any],
    bundle_digest: str,
    datasets: Mapping[str, Any],
    platform: str,
    runtime: str,
    image: str | None,
    home: Path,
    stand_ins: Mapping[str, str],
    said: Collection[str] = (),
) -> str:
    """Hex SHA-256. `stand_ins` maps a text as it stands in the spec to what it means (a checkpoint's hash, ...); `said`
    are the dotted keys that the caller set."""
    covered = {
        "action": action,
        "spec": spec if runtime == "tao" else _without_workers(spec, said),
        "bundle": bundle_digest,
        "datasets": datasets,
        "platform": platform,
        "runtime": runtime,
        "image": image,
    }
    roots = (str(home), str(home.resolve()))
    canonical = json.dumps(_steady(covered, roots, stand_ins), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _without_workers(spec: Mapping[str, Any], said: Collection[str], block: str = "") -> dict[str, Any]:
    return {
        key: _without_workers(value, said, f"{block}{key}.") if isinstance(value, Mapping) else value
        for key, value in spec.items()
        if key != "num_workers" or block + key in said
    }


def _steady(value: Any, roots: tuple[str, ...], stand_ins: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _steady(inner, roots, stand_ins) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_steady(inner, roots, stand_ins) for inner in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 1.0 and 1 are the same setting
    if not isinstance(value, str):
        return value
    if value in stand_ins:
        return stand_ins[value]
    for text, meaning in stand_ins.items():
        if value.startswith(text + "/"):
            return meaning + value[len(text) :]
    for root in roots:
        if value == root or value.startswith(root + "/"):
            return "{home}" + value[len(root) :]
    return value
