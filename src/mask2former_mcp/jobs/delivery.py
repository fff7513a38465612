"""Results that belong in S3: the job writes them in its own folder, this brings them there while it runs.

    <results_dir>/train/status.json ...   what the results folder holds, by the same names
    <results_dir>/job/job.json            whose results these are, how it stands, and at the end how it ended
    <results_dir>/job/log.txt, plan.json  the log, and the Plan with its spec; never spec.yaml, which has the key

What has arrived is noted in `<job>/uploaded.jsonl`, so that the next supervisor goes on where a killed one stopped.
Objects are written, never deleted: what a job removes from its folder stays in S3. A prefix belongs to one job.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former_mcp.errors import InvalidRequest, Mask2FormerError, NotFound
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job
from mask2former_mcp.jobs.keys import job_keys
from mask2former_mcp.settings import Settings
from mask2former_mcp.staging import upload
from mask2former_mcp.staging.uri import Uri, is_plain

RECORD = "job/job.json"
_GROWING = frozenset({".json", ".jsonl", ".txt", ".log", ".csv"})  # worth seeing before they are complete
_GROWING_LIMIT = 8 << 20  # bytes; a larger file is sent when it rests
_PATIENCE_S = 120.0  # at the end: without anything that arrives
_PAUSE_S = 5.0
_THREADS = 8

Standing = Callable[[], Mapping[str, Any]]  # facts of the job as it is now

_log = logging.getLogger("mask2former_mcp.delivery")


@dataclass(frozen=True, slots=True)
class _File:
    """A file to bring: its name below the prefix, and its state when it was seen."""

    name: str
    path: Path
    size: int
    mtime_ns: int


class Delivery:
    """Of one job. `claim` first; then a thread looks every `upload_every_s` seconds; `finish` brings the rest.

    `standing` is asked each time, and what it says goes into the record.
    """

    def __init__(
        self, job: Job, folders: Folders, settings: Settings, environ: Mapping[str, str], standing: Standing
    ) -> None:
        assert job.plan.results_dir is not None  # an s3:// prefix, checked when it was planned
        self.job, self.folders = job, folders
        self.prefix = Uri.parse(job.plan.results_dir)
        self.skipped: dict[str, str] = {}  # name -> why it is not sent
        self._every_s, self._environ, self._standing = settings.upload_every_s, environ, standing
        self._told: Mapping[str, Any] = {}
        self._journal = folders.job / "uploaded.jsonl"
        self._sent = _read_journal(self._journal)
        self._seen: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._claimed = False

    def claim(self) -> None:
        """Makes the prefix this job's. InvalidRequest when it holds something else; NotFound and NotAvailable as the
        store says. Nothing has run yet."""
        uri = self.prefix.child(RECORD)
        if not upload.is_empty(self.prefix):
            owner = upload.read_json(uri)
            name = owner.get("job_id") if isinstance(owner, dict) else None
            if name != self.job.id:
                whose = f"the results of {name}" if name else "other objects"
                raise InvalidRequest(
                    f"results_dir {self.prefix} holds {whose}", fix="Name a prefix below which nothing exists yet."
                )
        self._tell()
        self._claimed = True

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def close(self, ending: Mapping[str, Any]) -> None:
        """The record alone, once: of a job that nobody follows any more. Raises what the store says."""
        self.claim()
        upload.put(self._record(ending), self.prefix.child(RECORD))

    def finish(self, ending: Mapping[str, Any]) -> str | None:
        """Brings what is left, the record with the ending last. None, or why not all has arrived."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        since, arrived = time.monotonic(), len(self._sent)
        while (error := self._brought(ending)) is not None:
            if len(self._sent) > arrived:
                since, arrived = time.monotonic(), len(self._sent)
            if _is_final(error) or time.monotonic() - since > _PATIENCE_S:
                return error.message if isinstance(error, Mask2FormerError) else str(error)
            time.sleep(_PAUSE_S)
        return None

    def _brought(self, ending: Mapping[str, Any]) -> Mask2FormerError | OSError | None:
        try:
            if not self._claimed:
                self.claim()
            if (error := self._look(final=True)) is None:
                upload.put(self._record({**ending, "not_uploaded": self.skipped}), self.prefix.child(RECORD))
            return error
        except Mask2FormerError as error:
            return error

    # -- inside --

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            error = self._look(final=False)
            try:
                self._tell()
            except Mask2FormerError as also:
                error = error or also
            if error is not None:
                _log.warning("%s: not uploaded yet: %s", self.job.id, error)

    def _tell(self) -> None:
        """How the job stands, where that has changed."""
        now = self._standing()
        if now != self._told:
            upload.put(self._record(now), self.prefix.child(RECORD))
            self._told = now

    def _look(self, *, final: bool) -> Mask2FormerError | OSError | None:
        """Sends what is new: at the end everything, before it what is complete. The first of what went wrong."""
        due = [file for file in self._files() if self._is_due(file, final)]
        errors: list[Mask2FormerError | OSError] = []
        secrets = self._secrets()

        def one(file: _File) -> None:
            if self._over.is_set() and not final:
                return
            try:
                if upload.send(file.path, self.prefix.child(file.name), secrets):
                    self._note(file)
                else:
                    self.skipped[file.name] = "it holds the encryption key"
            except FileNotFoundError:
                return  # removed since it was seen
            except (Mask2FormerError, OSError) as error:
                errors.append(error)

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(one, due))
        return errors[0] if errors else None

    def _is_due(self, file: _File, final: bool) -> bool:
        state = (file.size, file.mtime_ns)
        rested = self._seen.get(file.name) == state
        self._seen[file.name] = state
        if self._sent.get(file.name) == state or file.name in self.skipped:
            return False
        growing = file.path.suffix.lower() in _GROWING and file.size <= _GROWING_LIMIT
        return final or rested or growing

    def _files(self) -> Iterator[_File]:
        """Of the results folder: no links, no unfinished files (whose names begin with a dot)."""
        plan = self.folders.job / "plan.json"
        if not plan.exists():
            plan.write_text(self.job.plan.model_dump_json(indent=2), encoding="utf-8")
        found = [(f"job/{path.name}", path) for path in (self.folders.log, plan)]
        for path in self.folders.results.rglob("*"):
            name = path.relative_to(self.folders.results).as_posix()
            if path.is_symlink() or any(part.startswith(".") for part in name.split("/")):
                continue
            if not is_plain(name):
                self.skipped[name] = "its name cannot be a key"
                continue
            found.append((name, path))
        for name, path in found:
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file():
                yield _File(name, path, status.st_size, status.st_mtime_ns)

    def _note(self, file: _File) -> None:
        with self._lock:
            self._sent[file.name] = (file.size, file.mtime_ns)
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps([file.name, file.size, file.mtime_ns]) + "\n")

    def _record(self, facts: Mapping[str, Any]) -> bytes:
        known = {
            "job_id": self.job.id,
            "action": self.job.action,
            "plan_digest": self.job.plan.digest,
            "at": time.time(),
        }
        return upload.masked(json.dumps({**known, **facts}, indent=2).encode(), self._secrets())

    def _secrets(self) -> tuple[bytes, ...]:
        """The encryption keys as files may have them."""
        keys = job_keys(self.job, self.folders, self._environ)
        return tuple(text for key in keys for text in upload.written(key))


def _is_final(error: Exception) -> bool:
    """What waiting does not mend: a prefix of somebody else, a bucket that is not there, a permission."""
    told = error.details if isinstance(error, Mask2FormerError) else {}
    return isinstance(error, InvalidRequest | NotFound) or "permission" in told


def _read_journal(path: Path) -> dict[str, tuple[int, int]]:
    """What has arrived already; a torn last line is sent again."""
    sent: dict[str, tuple[int, int]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return sent
    for line in lines:
        try:
            name, size, mtime_ns = json.loads(line)
        except ValueError:
            continue
        sent[name] = (size, mtime_ns)
    return sent
