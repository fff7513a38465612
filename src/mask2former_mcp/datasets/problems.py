"""What a check found: problems by code, few of them kept, all of them counted."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mask2former_mcp.formats.fault import FormatError

SHOWN = 20
Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """`file` is a path, `id` the record's id in it (image, annotation or category id, or a line)."""

    code: str
    severity: Severity
    message: str
    file: str | None = None
    id: int | str | None = None

    @property
    def sentence(self) -> str:
        return self.message + (f" (id {self.id})" if self.id is not None else "")

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "severity": self.severity, "message": self.message, "file": self.file, "id": self.id}


class Problems:
    """Collects problems in bounded memory: the first 20 of each code, and how many there were."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Severity, str], list[Problem]] = {}
        self._counts: Counter[tuple[Severity, str]] = Counter()

    def error(self, code: str, message: str, file: Path | str | None = None, id: int | str | None = None) -> None:
        self.add(Problem(code, "error", message, None if file is None else str(file), id))

    def warning(self, code: str, message: str, file: Path | str | None = None, id: int | str | None = None) -> None:
        self.add(Problem(code, "warning", message, None if file is None else str(file), id))

    def fault(self, fault: FormatError) -> None:
        """A reader's complaint, as an error."""
        self.error(fault.code, fault.reason, fault.file, fault.id)

    def add(self, problem: Problem) -> None:
        key = (problem.severity, problem.code)
        self._counts[key] += 1
        kept = self._kept.setdefault(key, [])
        if len(kept) < SHOWN:
            kept.append(problem)

    @property
    def errors(self) -> int:
        return sum(n for (severity, _), n in self._counts.items() if severity == "error")

    @property
    def warnings(self) -> int:
        return sum(n for (severity, _), n in self._counts.items() if severity == "warning")

    def by_code(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for (_, code), count in self._counts.items():
            found[code] += count
        return dict(found.most_common())

    def shown(self, limit: int = SHOWN) -> tuple[Problem, ...]:
        """At most `limit`: errors before warnings, and each kind of problem before the second of any kind."""
        ordered: list[Problem] = []
        for severity in ("error", "warning"):
            groups = [list(kept) for (s, _), kept in self._kept.items() if s == severity]
            for place in range(max(map(len, groups), default=0)):
                ordered += [group[place] for group in groups if place < len(group)]
        return tuple(ordered[:limit])
