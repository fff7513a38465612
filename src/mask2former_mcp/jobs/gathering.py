"""What attempts left in folders of their own, brought together where a job's results are looked for.

Only attempts under TAO have such folders (folders.py). An artifact of a later attempt replaces an earlier one of the
same name; everything else (TensorBoard, the resolved spec) stays with its attempt. Done again, it finds nothing to do.
"""

import os
from pathlib import Path

from mask2former_mcp.jobs.folders import Folders, attempt_folder
from mask2former_mcp.jobs.job import Job

_STAYS = "status.json"  # whoever follows the attempt reads it there


def gather(job: Job, folders: Folders, attempt: int) -> None:
    """Bring the artifacts of one attempt to the results folder. Links are left where they are, and never followed: a
    container made them."""
    name = attempt_folder(attempt)
    if not folders.own or not name:
        return
    results = folders.results.resolve()
    own = results / name
    for pattern in job.plan.artifacts:
        for path in sorted(own.glob(pattern)):
            target = results / path.relative_to(own)
            if path.is_file() and not path.is_symlink() and _is_plain(path.parent) and _is_plain(target.parent):
                _bring(path, target)


def gathered(job: Job, folders: Folders) -> Path:
    """The folder that then holds the checkpoints of all earlier attempts."""
    for attempt in range(2, job.attempt):
        gather(job, folders, attempt)
    return folders.results / job.action


def _is_plain(folder: Path) -> bool:
    return folder.resolve() == folder


def _bring(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.name != _STAYS:
        path.replace(target)
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.link(path, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # left where both names were one file already
