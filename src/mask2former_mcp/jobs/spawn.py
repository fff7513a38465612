"""Start a job's supervisor, detached; and tell whether it has one."""

import os
import subprocess
import sys
from collections.abc import Mapping

from mask2former_mcp.errors import StoreError
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.platforms.engine import importable
from mask2former_mcp.platforms.locks import is_held
from mask2former_mcp.platforms.process import alive, identify
from mask2former_mcp.settings import Settings

SUPERVISOR = "mask2former_mcp.jobs.supervisor"
STUDY_SUPERVISOR = "mask2former_mcp.automl.supervisor"  # by name only: jobs/ knows nothing of a search
_TIMEOUT_S = 30.0


def spawn(settings: Settings, store: JobStore, job: Job, environ: Mapping[str, str]) -> int:
    """Start a supervisor for this job; returns how many were started since the job last moved.

    StoreError when no process can be started.
    """
    folders = Folders.of(store.home, job)
    module = SUPERVISOR if job.plan.study is None else STUDY_SUPERVISOR
    try:
        folders.job.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(folders.supervisor_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb") as log:
            started = subprocess.run(
                [sys.executable, "-P", "-m", "mask2former_mcp.platforms.detach", module, "--job", job.id],
                env=importable(settings.environment(environ)),
                cwd=store.home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=_TIMEOUT_S,
                check=True,
            )
        identity = identify(int(started.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise StoreError(
            f"no supervisor could be started for {job.id}: {error}", fix="Check free memory and disk, then resume_job."
        ) from error
    return store.note_supervisor(job.id, dict(identity or {}), spawned=True)


def supervised(store: JobStore, job: Job) -> bool:
    """Whether a supervisor follows this job, or is about to."""
    return alive(job.supervisor) or is_held(Folders.of(store.home, job).lock)
