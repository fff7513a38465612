"""The spec template of an action: the top-level default of its schema, nothing else."""

from typing import Any

from mask2former_mcp.spec.schema import action_schema


def template(action: str) -> dict[str, Any]:
    """Nested defaults of `<action>`'s spec. ValueError for an unknown action."""
    nested: dict[str, Any] = action_schema(action)["default"]
    return nested
