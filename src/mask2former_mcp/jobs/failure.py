"""Why a run failed: a stable code, the line that shows the cause, and what to do about it.

Rules are asked in order, so that a root cause stands before what it drags along (a device-side assert ends in NCCL
errors; a fallen GPU ends in tracebacks). What the run says of itself comes before what its log happens to hold.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_CAUSE = 300


@dataclass(frozen=True, slots=True)
class Failure:
    code: str
    message: str  # cause, then advice


@dataclass(frozen=True, slots=True)
class _Rule:
    code: str
    pattern: re.Pattern[str]
    advice: str


def _rule(code: str, pattern: str, advice: str) -> _Rule:
    return _Rule(code, re.compile(pattern, re.IGNORECASE), advice)


_RULES = (
    _rule(
        "gpu_fault",
        r"\bXid\b|uncorrectable ECC|fallen off the bus|GPU is lost",
        "The GPU itself failed. resume_job goes on from the last checkpoint; leave this GPU out (setting `gpus`).",
    ),
    _rule(
        "device_assert",
        r"device-side assert|an illegal memory access",
        "Most often a class id outside the range: run check_dataset and compare its num_classes with the spec's.",
    ),
    _rule(
        "out_of_memory",
        r"out of memory|OutOfMemoryError|DefaultCPUAllocator|\bMemoryError\b|can('t|not) allocate memory",
        "Use a smaller batch_size (1 is the least), smaller images (dataset.augmentation.train_crop_size), "
        "train.activation_checkpoint=true, train.precision=fp16, or a smaller backbone.",
    ),
    _rule(
        "shared_memory_full",
        r"Bus error|insufficient shared memory|shared memory \(shm\)",
        "Give more shared memory, or set dataset.train.num_workers=0.",
    ),
    _rule(
        "worker_died",
        r"DataLoader worker .*(killed by signal|exited unexpectedly)",
        "Most often the machine ran out of memory: set dataset.train.num_workers=0 or a smaller batch_size; resume_job"
        " goes on from the last checkpoint.",
    ),
    _rule(
        "disk_full",
        r"No space left on device|Disk quota exceeded|Errno 28",
        "Free space (delete_job removes a job's folder), or keep fewer checkpoints with train.checkpoint_interval.",
    ),
    _rule(
        "engine_missing",
        r"No module named '?(torch|mask2former_mcp|lightning_fabric|onnx\w*|pycocotools|cv2|scipy|yaml)",
        "Install the engine's packages (extra `engine`) into the Python that runs jobs; doctor names them and how.",
    ),
    _rule(
        "checkpoint_mismatch",
        r"size mismatch for|Missing key\(s\) in state_dict|Unexpected key\(s\) in state_dict",
        "The weights belong to another network: use parent_job_id, which carries the architecture, or the same keys.",
    ),
    _rule(
        "bad_image",
        r"UnidentifiedImageError|cannot identify image file|image file is truncated|broken data stream",
        "Repair or remove the file; check_dataset names every such file.",
    ),
    _rule(
        "missing_file",
        r"FileNotFoundError|No such file or directory|NotADirectoryError",
        "Check that the file exists and that this user may read it; check_dataset lists what a data set lacks.",
    ),
    _rule("permission_denied", r"PermissionError|Permission denied", "Give this user access to the path."),
    _rule(
        "invalid_spec",
        r"Configuration error|Schema validation error|Parameter validation error|ConfigAttributeError|ConfigKeyError",
        "Correct the value; search_spec shows what each key accepts.",
    ),
    _rule("not_available", r"Feature not implemented", "Choose another value; search_spec shows what there is."),
    _rule(
        "communication_failed",
        r"NCCL (error|timeout)|nccl\w+Error|Watchdog caught collective|\bgloo\b.*(timeout|connect)",
        "resume_job goes on from the last checkpoint; NCCL_DEBUG=INFO in the server's environment says more.",
    ),
)  # fmt: skip

_ROOT_CAUSES = 2  # of the rules above
_OF_THE_MACHINE = 3  # of the rules above: those, and out_of_memory
_LAST_WORDS = 20  # lines
_NAMES = re.compile(r"\w+_\w+|\w+\.\w+")  # spec keys and tools
_TRACEBACK_END = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit|Warning)\b.*")


def explain(exit_code: int | None, failure_line: str | None, log_tail: Sequence[str]) -> Failure:
    """`exit_code` as the shell or as subprocess counts it (negative: a signal); `failure_line` is the message of
    status.json's FAILURE line, `log_tail` the log's last lines."""
    number = _signal(exit_code)
    # Who is killed has no time for last words, so that those before explain nothing, unless they tell of the machine.
    rules = _RULES[:_OF_THE_MACHINE] if number == signal.SIGKILL and not failure_line else _RULES
    if (found := _by_rule(rules, failure_line, log_tail)) is not None:
        return found
    if number == signal.SIGKILL:
        return Failure(
            "killed",
            "Killed by signal 9 (SIGKILL), most often the kernel's for want of memory. Use a smaller batch_size or"
            " fewer data workers, or give the machine more memory; resume_job goes on from the last checkpoint.",
        )
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        name = signal.Signals(number).name
        return Failure("interrupted", f"Ended by {name} from outside. resume_job goes on from the last checkpoint.")
    if number is not None:
        return Failure(
            "crashed", f"The process crashed with {_signal_name(number)}. get_job_logs shows its last words."
        )
    cause = failure_line or next((line for line in reversed(log_tail) if _TRACEBACK_END.match(line)), None)
    cause = cause or (log_tail[-1] if log_tail else "it said nothing")
    how = "" if exit_code is None else f" (exit code {exit_code})"
    return Failure("program_error", f"{_cut(cause)}{how} get_job_logs shows more.")


def _by_rule(rules: Sequence[_Rule], failure_line: str | None, log_tail: Sequence[str]) -> Failure | None:
    """Hardware and asserts wherever they show; then the FAILURE line, the log's errors, its last words."""
    said = [failure_line] if failure_line else []
    errors = [line for line in log_tail if _TRACEBACK_END.match(line)]
    searches: list[tuple[Sequence[_Rule], Sequence[str]]] = [
        (rules[:_ROOT_CAUSES], [*said, *log_tail]),
        (rules, said),
        (rules, errors),
        (rules, log_tail[-_LAST_WORDS:]),
    ]
    for asked, lines in searches:
        for rule in asked:
            cause = next((_cut(line) for line in lines if rule.pattern.search(line)), None)
            if cause is not None:
                known = any(word in cause for word in _NAMES.findall(rule.advice))  # it advises already
                return Failure(rule.code, cause if known else f"{cause} {rule.advice}")
    return None


def _cut(text: str) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= _MAX_CAUSE else f"{text[:_MAX_CAUSE]} ..."
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _signal(exit_code: int | None) -> int | None:
    if exit_code is None:
        return None
    if exit_code < 0:
        return -exit_code
    return exit_code - 128 if 128 < exit_code < 128 + 65 else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
