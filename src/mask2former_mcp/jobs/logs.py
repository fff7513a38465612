"""A job's log as pages of lines. The text is untrusted: control characters go, long lines are cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mask2former_mcp.errors import InvalidRequest

MAX_LINE = 1000  # characters
MAX_READ = 4_000_000  # bytes looked at in one call
_LONGEST_NUMBER = 20  # digits: Python refuses to read thousands of them
# Terminal escapes, then what remains of C0 and C1 controls (a tab stays).
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0a-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class LogPage:
    """`next_cursor` continues after these lines: pass it to see only what came later. `job_id`: whose log it is."""

    lines: tuple[str, ...]
    next_cursor: str
    size: int  # bytes of the whole log
    job_id: str = ""


def read_page(
    path: Path, *, tail: int, grep: str | None = None, cursor: str | None = None, budget: int = MAX_READ
) -> LogPage:
    """The last `tail` lines; with a cursor the next `tail` lines after it; with grep only lines that hold one of its
    alternatives (`error|warning`, plain text, case ignored). With a cursor at most `budget` characters, but one line at
    least: what does not fit comes with the next cursor."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return LogPage((), "0", 0)
    if cursor is None:
        start = max(size - MAX_READ, 0)
    elif cursor.isascii() and cursor.isdigit() and len(cursor) < _LONGEST_NUMBER:
        start = min(int(cursor), size)
    else:
        raise InvalidRequest(
            f"cursor {cursor!r} is not one that get_job_logs answered", fix="Pass next_cursor unchanged."
        )
    with path.open("rb") as stream:
        stream.seek(start)
        data = stream.read(MAX_READ)
    words = [word.casefold() for word in (grep or "").split("|") if word]
    lines: list[str] = []
    position = start
    for raw in data.splitlines(keepends=True):
        if cursor is not None and len(lines) == tail:
            break
        if not raw.endswith((b"\n", b"\r")) and position + len(raw) >= size and cursor is not None:
            break  # the last line is still being written: leave it for the next call
        text = clean(raw)
        if text and (not words or any(word in text.casefold() for word in words)):
            budget -= len(text) + 1
            if cursor is not None and budget < 0 and lines:
                break
            lines.append(text)
        position += len(raw)
    return LogPage(tuple(lines[-tail:]), str(position), size)


def clean(raw: bytes) -> str:
    text = _CONTROL.sub("", raw.decode("utf-8", errors="replace")).rstrip()
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]} ... ({len(text)} characters)"


def last_lines(path: Path, count: int) -> tuple[str, ...]:
    return read_page(path, tail=count).lines


def attempt_header(attempt: int) -> str:
    """How a later attempt begins in the log."""
    return f"--- attempt {attempt} ---"


def of_attempt(lines: Sequence[str], attempt: int) -> Sequence[str]:
    """What this attempt wrote: an earlier one's traceback explains nothing."""
    headers = [number for number, line in enumerate(lines) if line.startswith(attempt_header(attempt))]
    return lines[headers[-1] + 1 :] if headers else lines
