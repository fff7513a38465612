"""What every platform does, and the values it speaks in. `local` is the reference implementation.

`render` is pure (tests compare it whole); the others touch the world.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of this machine as a container sees it."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Task:
    """One prepared attempt of a job: its files are in place, its devices are leased."""

    job_id: str
    attempt: int
    command: tuple[str, ...]  # `mask2former <action> -e {job_dir}/spec.yaml`, placeholders filled in
    job_dir: Path
    results_dir: Path
    log_file: Path
    devices: tuple[str, ...]  # GPU UUIDs; empty: the CPU
    cpu_slots: int = 1
    image: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)  # all that the process sees
    secrets: tuple[str, ...] = ()  # values to mask in the log
    # Containers only (jobs/contained.py fills these in):
    digest: str = ""  # the Plan's, for the label
    binds: tuple[Bind, ...] = ()
    user: tuple[int, int] | None = None  # uid and gid inside
    groups: tuple[int, ...] = ()  # further gids inside
    is_foreign: bool = False  # somebody else's image: its own entry point runs the command


Report = Callable[[str, float], None]  # what is being done, 0..1 of it; may raise, to stop


def silent(what: str, done: float) -> None:
    """A Report to nobody."""


Handle = dict[str, Any]  # JSON-able: stored with the job, enough to find the work again from another process


@dataclass(frozen=True, slots=True)
class Observation:
    """What the platform sees now. `exit_code` is None while running and when nobody can know it."""

    state: Literal["waiting", "running", "exited", "missing"]  # waiting: it is being started
    exit_code: int | None = None
    detail: str = ""  # why, where the state does not say it all; of what goes on it becomes the job's phase
    is_away: bool = False  # running, as far as anybody knows: the platform could not be asked, `detail` says why
    cut_off: bool = False  # taken along by the platform, or so it seems where nobody watched: no fault of the program
    out_of_memory: bool = False  # the memory limit was hit: by the process itself or by a child of it


class Platform(Protocol):
    """At most five methods; every implementation runs tests/unit/platforms/test_platform_conformance.py."""

    def render(self, task: Task) -> Mapping[str, Any]:
        """All that `submit` will do, plus `handle`: known before the start, and the same for one job and attempt."""
        ...

    def submit(self, task: Task, report: Report = silent) -> Handle:
        """Start the task. Fenced: one job and attempt starts once; called again, it answers the handle of that start.

        What takes long before the start (an image that is pulled) is told to `report`. NotAvailable when it cannot be
        started here.
        """
        ...

    def poll(self, handle: Handle) -> Observation: ...

    def cancel(self, handle: Handle, *, grace_s: float) -> None:
        """End all that belongs to it and return when it is gone: asked first, killed after `grace_s` seconds."""
        ...

    def logs(self, handle: Handle) -> Iterator[str]: ...
