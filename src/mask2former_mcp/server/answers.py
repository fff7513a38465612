"""Everything a tool says goes out through here: the object itself as structured content, the same facts as text."""

import json
import math
from collections.abc import Mapping
from typing import Any

from mcp.types import CallToolResult, TextContent

from mask2former_mcp.errors import Mask2FormerError
from mask2former_mcp.server.untrusted import clean_line, clean_tree

MASK = "***"
MAX_HEADLINE = 1_000
_SECRET_KEYS = frozenset({"encryption_key"})


def answer(facts: Mapping[str, Any], *headlines: str, text: str | None = None) -> CallToolResult:
    """A successful result: a line for each headline, then the facts.

    Headlines quote names from data sets and logs: each is cleaned and stays one line. `text` replaces the JSON
    rendering where it holds the same facts more readably.
    """
    structured = presentable(facts)
    body = text if text is not None else _json(structured)
    lines = [clean_line(headline, limit=MAX_HEADLINE) for headline in headlines]
    return CallToolResult(
        content=[TextContent(type="text", text="\n".join([*lines, body]))],
        structured_content=structured,
    )


def refusal(error: Mask2FormerError, *, starts: bool) -> CallToolResult:
    """An error the caller can act on: stable code, cause, the exact fix, and of a tool that `starts` jobs whether one
    was started."""
    facts: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "fix": error.fix,
        "started": error.started,
        **({"details": error.details} if error.details else {}),
    }
    structured = presentable(facts)
    text = f"{structured['code']}: {structured['message']}\nFix: {structured['fix']}"
    if starts:
        text += "\nIt was started." if error.started else "\nNothing was started."
    if error.details:
        text += f"\nDetails: {_json(structured['details'])}"
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structured, is_error=True)


def presentable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able, cleaned of hidden characters, secrets masked, non-finite numbers as null."""
    cleaned: dict[str, Any] = _masked(clean_tree(dict(facts)))
    return cleaned


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: MASK if _is_secret(key, item) else _masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _is_secret(key: str, value: Any) -> bool:
    return key.rpartition(".")[2] in _SECRET_KEYS and isinstance(value, str) and value != ""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
