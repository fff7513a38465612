"""status.json: one JSON object a line, appended; what anyone who watches a run reads.

The lines are TAO's (`date`, `time`, `status`, `verbosity`, `message`, `kpi`), local time without padding. Added by us:
`epoch`, `step`, `progress` (0..1), `eta_s` and `time_per_*` as fields of their own, `kpi` only on the line that
measured it, a FAILURE line whatever went wrong, and SUCCESS, not RUNNING, at the end.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former_mcp.engine import processes

FILE_NAME = "status.json"


class StatusLog:
    """Appends lines to `<folder>/status.json`. Stateless apart from the path, so several writers may take turns.

    Of several processes that train together, only the first writes, and whoever started it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE_NAME
        self._end_torn_line()

    def started(self, message: str) -> None:
        self._write("STARTED", message)

    def running(self, message: str, kpi: Mapping[str, float] | None = None, **fields: Any) -> None:
        self._write("RUNNING", message, kpi, fields)

    def skipped(self, message: str) -> None:
        self._write("SKIPPED", message)

    def success(self, message: str) -> None:
        self._write("SUCCESS", message)

    def failure(self, message: str) -> None:
        self._write("FAILURE", message)

    def _write(
        self,
        status: str,
        message: str,
        kpi: Mapping[str, float] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        if not processes.is_first(os.environ):
            return
        now = time.localtime()
        line: dict[str, Any] = {
            "date": f"{now.tm_mon}/{now.tm_mday}/{now.tm_year}",
            "time": f"{now.tm_hour}:{now.tm_min}:{now.tm_sec}",
            "status": status,
            "verbosity": "ERROR" if status == "FAILURE" else "INFO",
            "message": message,
            **(fields or {}),
        }
        if measured := finite(kpi or {}):
            line["kpi"] = measured
        with self.path.open("a", encoding="utf-8") as file:  # one write a line: a reader sees whole lines
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def _end_torn_line(self) -> None:
        """A process killed while writing leaves half a line; the next one must not be glued to it."""
        if self.path.exists() and (content := self.path.read_bytes()) and not content.endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The values that JSON can hold: what was not measured (NaN) is left out, not written as a number."""
    return {name: float(f"{value:.7g}") for name, value in values.items() if math.isfinite(value)}
