"""A job: a frozen record, its states, and which state may follow which."""

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from mask2former_mcp.jobs.plan import Plan

MAX_PHASE = 200  # characters


class JobState(StrEnum):
    QUEUED = "queued"  # in the store; waiting for its devices
    PREPARING = "preparing"  # devices held; data is staged and checked, spec.yaml is written
    RUNNING = "running"  # the child process lives
    STOPPING = "stopping"  # asked to end; the process group may still live
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # nobody knows how it ended: the machine went away under it

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.LOST})
LIVE = tuple(state for state in JobState if state not in TERMINAL)

BUDGET = "automl."
"""Before a name in Job.changes: a setting of a study (automl/settings.py). The other names are dotted spec keys."""

# queued -> succeeded is legal because polling can miss a short run. An ended job is queued again only as a new numbered
# attempt: JobStore.retry and JobStore.resume.
_ANY_END = TERMINAL | {JobState.STOPPING}
TRANSITIONS: MappingProxyType[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.QUEUED: _ANY_END | {JobState.PREPARING, JobState.RUNNING},
        JobState.PREPARING: _ANY_END | {JobState.RUNNING},
        JobState.RUNNING: _ANY_END,
        JobState.STOPPING: TERMINAL,
        **dict.fromkeys(TERMINAL, frozenset[JobState]()),
    }
)


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the store. Times are seconds since the epoch (UTC); paths are relative to the home unless absolute."""

    id: str
    action: str
    state: JobState
    plan: Plan
    created_at: float
    results_dir: str = ""  # where the results land; fixed when the job is submitted
    attempt: int = 1
    run_name: str | None = None
    parent_job_id: str | None = None  # lineage: whose artifacts this job uses
    study_id: str | None = None  # membership: the study this job is a trial of
    trial: int | None = None
    phase: str = ""  # one short line: what it is doing, or behind whom it waits
    progress: float = 0.0  # 0..1
    eta_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # flat, best epoch: mIoU, PQ, SQ, RQ, AP, val_loss, ...
    message: str = ""
    error_code: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    handle: dict[str, Any] | None = None  # what the platform needs to find the running job again
    changes: dict[str, Any] = field(default_factory=dict)  # dotted spec keys that resume_job changed (num_epochs)
    restarts: int = 0  # automatic attempts since the last submission or resume
    queued_at: float | None = None  # its place in the queue
    supervisor: dict[str, Any] | None = None  # the process that follows this job: pid and birth
    spawns: int = 0  # supervisors that were started since it last got on
