"""`study.json` in the study's results folder: written while the study runs, final when it has ended.

It is what get_job shows of a study and what later actions read the winner from. Paths in it are relative to the home.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "study.json"
# What get_job answers; the file has more (full specs, all trials, failures).
_SHOWN = ("leaderboard", "winner", "baseline", "final", "budget", "eta_s", "pictures")
_WINNER = ("trial", "job_id", "metric", "epoch", "checkpoint", "sha256", "parameters", "reason")


def write(results: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    results.mkdir(parents=True, exist_ok=True)
    temporary = results / f".{FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(results / FILE)


def read(results: Path) -> dict[str, Any] | None:
    """The study as it stands; None before its first trial."""
    try:
        found = json.loads((results / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def shown(content: Mapping[str, Any]) -> dict[str, Any]:
    """The compact form: the winner without its spec."""
    facts = {name: content.get(name) for name in _SHOWN}
    if winner := content.get("winner"):
        facts["winner"] = {name: winner[name] for name in _WINNER if name in winner}
    return facts


def portable(path: Path, home: Path) -> str:
    """Relative to the home where it lies inside."""
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
