"""Where a job's files lie: `<home>/jobs/<id>/{spec.yaml, log.txt, results/, run/<attempt>/}`.

The store keeps paths relative to the home, so that a home can be moved.
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
    """Absolute paths of one job."""

    home: Path
    job: Path
    results: Path

    @classmethod
    def of(cls, home: Path, job: Job) -> "Folders":
        return cls(home=home, job=home / "jobs" / job.id, results=home / job.results_dir)

    @property
    def spec(self) -> Path:
        return self.job / "spec.yaml"

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
            paths = {"results_dir": self.results, "job_dir": self.job, "home": self.home}
            return _PLACEHOLDER.sub(lambda match: str(paths[match[1]]), value)
        if isinstance(value, dict):
            return {key: self.fill(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.fill(inner) for inner in value]
        return value


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
