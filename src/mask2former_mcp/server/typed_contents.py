"""A server whose files are answered as what they are: the SDK gives all contents of a template one media type."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import InputRequiredResult

from mask2former_mcp.server.untrusted import clean

TEXTS: Mapping[str, str] = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".txt": "text/plain",
    ".yaml": "application/yaml",
}
BINARIES: Mapping[str, str] = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
_BYTES = "application/octet-stream"
_LONGEST_TEXT = 1_000_000  # bytes: what is longer is data for a program, and cleaning it would take seconds


class TypedServer(MCPServer[None]):
    """Contents that a resource answers as bytes get the media type of their name; text files are answered as text."""

    async def read_resource(
        self, uri: Any, context: Context[None, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        found = await super().read_resource(uri, context)
        return found if isinstance(found, InputRequiredResult) else [_typed(item, str(uri)) for item in found]


def _typed(item: ReadResourceContents, uri: str) -> ReadResourceContents:
    if not isinstance(item.content, bytes):
        return item
    suffix = PurePosixPath(uri).suffix.lower()
    kind = TEXTS.get(suffix) or BINARIES.get(suffix, _BYTES)
    if suffix not in TEXTS or len(item.content) > _LONGEST_TEXT:
        return replace(item, mime_type=kind)
    try:
        text = item.content.decode("utf-8")
    except UnicodeDecodeError:
        return replace(item, mime_type=_BYTES)
    return replace(item, content=clean(text, limit=len(text) + 1), mime_type=kind)
