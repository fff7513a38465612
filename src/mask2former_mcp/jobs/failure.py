"""Why a run failed: a stable code, the line that shows the cause, what to do about it, and whether to try again.

The first root cause wins over what it drags along: a device-side assert ends in NCCL errors, a rank without memory in
the time-outs of the others, a fallen GPU in tracebacks. The table is causes.py; where to look for it is said here.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from mask2former_mcp.jobs.causes import CAUSES, Cause

_MAX_CAUSE = 300


@dataclass(frozen=True, slots=True)
class Failure:
    code: str
    message: str  # cause, then advice
    is_retried: bool = False  # the infrastructure's fault: another attempt may succeed


_LAST_WORDS = 20  # lines
_NAMES = re.compile(r"\w+_\w+|\w+\.\w+")  # spec keys and tools
# The line that ends a traceback; of several processes each line may begin with its rank.
_TRACEBACK_END = re.compile(r"^(?:\[rank\d+\]:\s*)?(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*")
# Errors of processes that miss another one: as little a cause as a symptom.
_MISSES_ANOTHER = re.compile(
    r"\b(?:Connection\w*|BrokenPipe|EOF|Dist\w*|ChildFailed)Error\b|Connection (?:closed|reset) by peer|Broken pipe"
)
_SYMPTOMS = tuple(cause for cause in CAUSES if cause.is_symptom)
_KILLED = tuple(cause for cause in CAUSES if cause.anywhere or cause.code == "out_of_memory")


def explain(exit_code: int | None, failure_line: str | None, log_tail: Sequence[str]) -> Failure:
    """`exit_code` as the shell or as subprocess counts it (negative: a signal); `failure_line` is the message of
    status.json's FAILURE line, `log_tail` the log's last lines."""
    number = _signal(exit_code)
    # Who is killed has no time for last words, so that those before explain nothing, unless they tell of the machine.
    causes = _KILLED if number == signal.SIGKILL and not failure_line else CAUSES
    if (found := _known(causes, failure_line, log_tail)) is not None:
        cause, line = found
        own = _own_words(failure_line, log_tail) if cause.is_symptom else None
        return _program_error(own, exit_code) if own else _advised(cause, line)
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
    last = next((line for line in reversed(log_tail) if _TRACEBACK_END.match(line)), None)
    return _program_error(failure_line or last or (log_tail[-1] if log_tail else "it said nothing"), exit_code)


def _known(causes: Sequence[Cause], failure_line: str | None, log_tail: Sequence[str]) -> tuple[Cause, str] | None:
    """The cause and the line that shows it. Hardware and asserts wherever they show; then the FAILURE line, the log's
    errors, its last words; symptoms last.

    In the log the earliest line counts: what follows it may be its consequence.
    """
    said = [failure_line] if failure_line else []
    errors = [line for line in log_tail if _TRACEBACK_END.match(line)]
    words = log_tail[-_LAST_WORDS:]
    roots = [cause for cause in causes if not cause.is_symptom]
    symptoms = [cause for cause in causes if cause.is_symptom]
    searches: list[tuple[Sequence[Cause], Sequence[str]]] = [
        ([cause for cause in roots if cause.anywhere], [*said, *log_tail]),
        *((roots, lines) for lines in (said, errors, words)),
        *((symptoms, lines) for lines in (said, errors, words)),
    ]
    return next((found for asked, lines in searches if (found := _first(asked, lines)) is not None), None)


def _first(causes: Sequence[Cause], lines: Sequence[str]) -> tuple[Cause, str] | None:
    return next(((cause, line) for line in lines for cause in causes if cause.pattern.search(line)), None)


def _own_words(failure_line: str | None, log_tail: Sequence[str]) -> str | None:
    """An error that no cause explains and that no symptom precedes: the symptoms follow from it."""
    first = next((line for line in log_tail if _TRACEBACK_END.match(line) or _is_symptom(line)), None)
    return next((line for line in (failure_line, first) if line and not _is_symptom(line)), None)


def _is_symptom(line: str) -> bool:
    return bool(_MISSES_ANOTHER.search(line)) or any(cause.pattern.search(line) for cause in _SYMPTOMS)


def _advised(cause: Cause, line: str) -> Failure:
    text = _cut(line)
    known = any(word in text for word in _NAMES.findall(cause.advice))  # it advises already
    return Failure(cause.code, text if known else f"{text} {cause.advice}", cause.by_machine)


def _program_error(line: str, exit_code: int | None) -> Failure:
    how = "" if exit_code is None else f" (exit code {exit_code})"
    return Failure("program_error", f"{_cut(line)}{how} get_job_logs shows more.")


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
