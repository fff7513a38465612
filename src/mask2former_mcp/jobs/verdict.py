"""How a run ended: exit code *and* the done line of its last segment *and* the expected artifacts."""

from collections.abc import Sequence
from dataclasses import dataclass

from mask2former_mcp.jobs.failure import explain
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.status import Run

# The kernel ends a child (a data loader) and the trainer may still exit with 0, so this does not hang on the code.
_MEMORY_LIMIT = (
    "The container reached its memory limit and the kernel ended a process in it. Use a smaller batch_size or fewer"
    " data workers (dataset.train.num_workers), or ask the operator to raise container_memory_gb; then resume_job."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    state: JobState
    message: str
    error_code: str | None = None
    is_retried: bool = False  # the machine's fault: another attempt may succeed


def judge(
    exit_code: int,
    run: Run,
    missing: Sequence[str],
    log_tail: Sequence[str],
    *,
    stopping: bool = False,
    out_of_memory: bool = False,
) -> Verdict:
    """`missing` are the artifact patterns without a file; `stopping`: somebody asked for the end; `out_of_memory`: the
    platform saw the memory limit hit. What was done or cancelled is told by the caller.

    TAO's container exits 0 when it is interrupted and writes no FAILURE line when it runs out of memory, so neither
    the code nor the file is proof alone. A run that had finished before the request to stop reached it has succeeded.
    """
    if exit_code == 0 and run.done and not missing:
        return Verdict(JobState.SUCCEEDED, "")
    if stopping:
        return Verdict(JobState.CANCELLED, "")
    if out_of_memory:
        return Verdict(JobState.FAILED, _MEMORY_LIMIT, "out_of_memory")
    if exit_code != 0 or run.failure is not None:
        failure = explain(exit_code, run.failure, log_tail)
        return Verdict(JobState.FAILED, failure.message, failure.code, failure.is_retried)
    if not run.done:
        return Verdict(
            JobState.FAILED,
            "The process ended with exit code 0, but its status.json does not say that it finished: it was interrupted."
            " resume_job goes on from the last checkpoint.",
            "not_finished",
        )
    return Verdict(
        JobState.FAILED,
        f"It says that it finished, but there is no file for {', '.join(missing)}. get_job_logs shows what it did.",
        "artifact_missing",
    )
