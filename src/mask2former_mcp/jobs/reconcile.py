"""Find jobs that nobody follows any more, and give each a supervisor again; mark the rest lost, with the reason.

A supervisor that is started for a job finds out itself whether its process still runs (and adopts it) or is gone (and
begins the next attempt). Servers that share a home take turns: one file lock, given back by the kernel, says who.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from mask2former_mcp.errors import Mask2FormerError, StoreError
from mask2former_mcp.jobs.cancelling import ask_to_end, live_members
from mask2former_mcp.jobs.delivering import Delivering
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import LIVE, Job, JobState
from mask2former_mcp.jobs.keys import job_keys
from mask2former_mcp.jobs.leases import Leases
from mask2former_mcp.jobs.logs import last_lines
from mask2former_mcp.jobs.spawn import spawn, supervised
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.platforms.locks import ProcessLock
from mask2former_mcp.platforms.protocol import Platform
from mask2former_mcp.platforms.registry import platform_for
from mask2former_mcp.settings import Settings

MAX_SPAWNS = 5  # supervisors that died without moving the job
RETRY_S = 20.0  # after these, between two more for a job whose process still works
TRASH = "trash"
_PHASE_LENGTH = 300

_log = logging.getLogger(__name__)


def reconcile(settings: Settings, store: JobStore, environ: Mapping[str, str]) -> list[str]:
    """Returns the ids of jobs that got a new supervisor or were marked lost; none when another process is at it."""
    with ProcessLock(store.home / "reconcile.lock") as lock:
        if not _acquired(lock):
            return []
        touched = []
        cursor: str | None = None
        while True:
            jobs, cursor = store.list(states=LIVE, limit=200, cursor=cursor)
            touched += [job.id for job in jobs if _looked_after(settings, store, job, environ)]
            if cursor is None:
                break
        Leases(store.database).release_orphans()
        _empty(store.home / TRASH)
        return touched


def _looked_after(settings: Settings, store: JobStore, job: Job, environ: Mapping[str, str]) -> bool:
    """Whether something was done for this job. What goes wrong here is told, and keeps nobody from the next job."""
    try:
        return not supervised(store, job) and _revive(settings, store, job, environ)
    except Exception as error:  # noqa: BLE001 - the boundary between jobs
        _log.warning("%s: %s", job.id, error, exc_info=not isinstance(error, Mask2FormerError))
        with contextlib.suppress(StoreError):
            store.update(job.id, job.attempt, phase=f"nobody follows it: {error}"[:_PHASE_LENGTH])
    return False


def _empty(trash: Path) -> None:
    """The folder itself stays: somebody may be about to move something into it."""
    with contextlib.suppress(FileNotFoundError):
        for folder in trash.iterdir():
            shutil.rmtree(folder, ignore_errors=True)


def _acquired(lock: ProcessLock) -> bool:
    try:
        return lock.acquire()
    except OSError as error:
        raise StoreError(
            f"{lock.path} cannot be opened: {error.strerror}",
            fix="Check that the folder is writable and has free space, or set M2F_HOME to another folder.",
        ) from error


def discard(home: Path, folder: Path) -> None:
    """Remove a job's folder: out of sight at once, then file by file. Links are unlinked, never followed."""
    if folder.is_symlink():
        folder.unlink()
        return
    trash = home / TRASH
    trash.mkdir(exist_ok=True, mode=0o700)
    try:
        folder = folder.rename(trash / f"{folder.name}-{time.time_ns()}")
    except FileNotFoundError:
        return
    shutil.rmtree(folder, ignore_errors=True)


def _revive(settings: Settings, store: JobStore, job: Job, environ: Mapping[str, str]) -> bool:
    now = store.state(job.id)  # the list was read a moment ago
    if now is None or now[0].terminal:
        return False
    folders = Folders.of(store.home, job)
    if not folders.job.is_dir() and job.state is not JobState.QUEUED:
        _give_up(settings, store, job, environ, f"Its folder {folders.job} is gone.")
        return True
    working = job.spawns >= MAX_SPAWNS and _works(settings, job, environ)
    if working and not _is_due(folders):
        return False
    if spawn(settings, store, job, environ) > MAX_SPAWNS:
        words = " ".join(last_lines(folders.supervisor_log, 1))
        if working:
            phase = f"nobody follows it; its supervisors end, the next one starts in {RETRY_S:.0f} s: {words}"
            store.update(job.id, job.attempt, phase=phase[:_PHASE_LENGTH])
        else:
            _give_up(
                settings, store, job, environ, f"Its supervisor ended {MAX_SPAWNS} times without getting on: {words}"
            )
    return True


def _works(settings: Settings, job: Job, environ: Mapping[str, str]) -> bool:
    """Whether the job's own process still runs, and nobody asked for its end. Then it is left to work: what ends its
    supervisors (a full disk, a broken installation) is not its trouble, and one that follows later finds it all."""
    if job.handle is None or job.state is JobState.STOPPING:
        return False
    return _platform(settings, job, environ).poll(job.handle).state in ("waiting", "running")


def _platform(settings: Settings, job: Job, environ: Mapping[str, str]) -> Platform:
    keys = job_keys(job, Folders.of(settings.home, job), environ)
    return platform_for(job.plan.platform, settings, keys, environ)


def _is_due(folders: Folders) -> bool:
    """Whether RETRY_S have passed since the last try; notes this one. In the lock file's time: a full disk takes it."""
    try:
        if time.time() - folders.lock.stat().st_mtime < RETRY_S:
            return False
        os.utime(folders.lock)
    except FileNotFoundError:
        pass
    return True


def _give_up(settings: Settings, store: JobStore, job: Job, environ: Mapping[str, str], reason: str) -> None:
    """Lost: but first end whatever of it still runs, because its devices are given back now.

    The trials of a lost study hold their own devices and have supervisors of their own: they go on, unless the study
    was to stop.
    """
    if job.handle is not None:
        _platform(settings, job, environ).cancel(job.handle, grace_s=settings.cancel_grace_s)
    if running := live_members(store, job):
        if job.state is JobState.STOPPING:
            for member in running:
                ask_to_end(store, member.id)
        else:
            reason += f" {len(running)} of its jobs still run: resume_job takes them over, cancel_job stops them."
    store.history.end(job.id, job.attempt, JobState.LOST, None)
    store.transition(
        job.id,
        JobState.LOST,
        expect=LIVE,
        attempt=job.attempt,
        text=reason,
        message=reason,
        error_code="lost",
        phase="lost",
    )
    Delivering(settings, store, environ).close(job, JobState.LOST, reason, "lost")
