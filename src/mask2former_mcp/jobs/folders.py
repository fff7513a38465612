"""Where a job's files lie: `<home>/jobs/<id>/{spec.yaml, log.txt, results/, run/<attempt>/}`.

The store keeps paths relative to the home, so that a home can be moved. A later attempt under TAO writes to
`results/attempt-<n>/`: its containers resume, unasked, in a folder that holds a checkpoint, append to an old
status.json and refuse to write over an ONNX file.
"""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former_mcp.jobs.job import Job
from mask2former_mcp.staging.uri import SCHEME

_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # nothing that is read as another
_PLACEHOLDER = re.compile(r"\{(results_dir|job_dir|home)\}")


@dataclass(frozen=True, slots=True)
class Folders:
    """Absolute paths of one job. `own`: the folder below the results that its present attempt has for itself."""

    home: Path
    job: Path
    results: Path
    own: str = ""

    @classmethod
    def of(cls, home: Path, job: Job) -> "Folders":
        own = attempt_folder(job.attempt) if job.plan.runtime == "tao" else ""
        return cls(home=home, job=home / "jobs" / job.id, results=home / job.results_dir, own=own)

    @property
    def output(self) -> Path:
        """Where the present attempt writes."""
        return self.results / self.own if self.own else self.results

    @property
    def spec(self) -> Path:
        return self.job / "spec.yaml"

    @property
    def earlier_keys(self) -> Path:
        return self.job / "earlier_keys.yaml"

    @property
    def log(self) -> Path:
        return self.job / "log.txt"

    @property
    def lock(self) -> Path:
        return self.job / "supervisor.lock"

    @property
    def supervisor_log(self) -> Path:
        return self.job / "supervisor.log"

    def fill(self, value: Any) -> Any:
        """The value with `{results_dir}`, `{job_dir}` and `{home}` replaced, in texts however deep."""
        if isinstance(value, str):
            paths = {"results_dir": self.output, "job_dir": self.job, "home": self.home}
            return _PLACEHOLDER.sub(lambda match: str(paths[match[1]]), value)
        if isinstance(value, dict):
            return {key: self.fill(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.fill(inner) for inner in value]
        return value


def attempt_folder(attempt: int) -> str:
    """The folder that an attempt under TAO has for itself; the first one needs none."""
    return f"attempt-{attempt}" if attempt > 1 else ""


def new_id(action: str) -> str:
    """Readable and random: train-7f3k9q2d."""
    return f"{action.replace('_', '-')}-{''.join(secrets.choice(_ALPHABET) for _ in range(8))}"


def stored_results_dir(home: Path, job_id: str, chosen: str | None) -> str:
    """How the store writes a results folder: relative to the home where it lies inside.

    Results that go to S3 are written in the job's own folder first (jobs/delivery.py brings them there).
    """
    if chosen is None or chosen.startswith(SCHEME):
        return f"jobs/{job_id}/results"
    path = Path(chosen).expanduser().absolute()
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)
