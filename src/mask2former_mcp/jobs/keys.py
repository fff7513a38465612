"""The encryption key of a job: what its attempts are given, and what nobody may see.

It comes from the server's environment and stands in `spec.yaml` (mode 0600). An attempt may be given another key than
the one before; the earlier ones, which files of the job may still hold, then stand in `earlier_keys.yaml` beside it, so
that whoever shows or uploads such a file knows them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job
from mask2former_mcp.jobs.private import write_private
from mask2former_mcp.settings import KEY_VARIABLE

MASK = "***"


def key_for(job: Job, folders: Folders, environ: Mapping[str, str]) -> str | None:
    """The key for the next attempt's spec, where the Plan says that there is one: the environment's, else the last
    attempt's. One that it replaces is remembered."""
    if not job.plan.key_from_environment:
        return None
    given = _given(folders)
    if not (key := environ.get(KEY_VARIABLE) or given):
        raise InvalidRequest(
            f"the Plan takes the encryption key from the environment, but {KEY_VARIABLE} is not set",
            fix=f"Set {KEY_VARIABLE} where the server runs, then resume_job.",
        )
    earlier = _earlier(folders)
    if given and given not in (key, *earlier):
        write_private(folders.earlier_keys, yaml.safe_dump([*earlier, given]))
    return key


def job_keys(job: Job, folders: Folders, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The encryption keys that this job's files and log may hold and nobody may see: what its attempts were given and
    the environment's, which may be another one by now. The longest first: it may begin with another."""
    keys = {environ.get(KEY_VARIABLE)}
    if job.plan.key_from_environment:
        keys |= {_given(folders), *_earlier(folders)}
    return tuple(sorted((key for key in keys if key), key=len, reverse=True))


def hidden(text: str, keys: Sequence[str]) -> str:
    """The text with MASK in the place of each key."""
    for key in keys:
        text = text.replace(key, MASK)
    return text


def masked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as it may be shown."""
    return {**spec, **({"encryption_key": MASK} if spec.get("encryption_key") else {})}


def _given(folders: Folders) -> str | None:
    """What stands in `spec.yaml` since the last attempt was prepared."""
    spec = _read(folders.spec)
    given = spec.get("encryption_key") if isinstance(spec, dict) else None
    return str(given) if given else None


def _earlier(folders: Folders) -> list[str]:
    """What attempts before that were given."""
    found = _read(folders.earlier_keys)
    return [str(key) for key in found] if isinstance(found, list) else []


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
