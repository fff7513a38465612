"""The Plan's digest: the same work has the same digest on every machine, for every job id, at any time.

It covers action, spec, bundle, datasets (URIs and the hashes of their annotation files), platform, runtime and image.
Results paths enter as `{results_dir}`, the home as `{home}`, a model file as the hash of its bytes, and an archive's
cache folder as the archive it comes from. A number of loader processes that nobody chose does not enter: it follows
from the machine, and the batches are the same.
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
    machines: Collection[str] = (),
) -> str:
    """Hex SHA-256. `stand_ins` maps a text as it stands in the spec to what it means (a checkpoint's hash, ...);
    `machines` are dotted keys of the spec that follow from the machine."""
    covered = {
        "action": action,
        "spec": _without(spec, machines),
        "bundle": bundle_digest,
        "datasets": datasets,
        "platform": platform,
        "runtime": runtime,
        "image": image,
    }
    roots = (str(home), str(home.resolve()))
    canonical = json.dumps(_steady(covered, roots, stand_ins), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _without(spec: Mapping[str, Any], keys: Collection[str], above: str = "") -> dict[str, Any]:
    """The nested spec less these dotted keys."""
    return {
        key: _without(value, keys, f"{above}{key}.") if isinstance(value, Mapping) else value
        for key, value in spec.items()
        if f"{above}{key}" not in keys
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
