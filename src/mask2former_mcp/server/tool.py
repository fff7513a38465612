"""The one way a tool is made: a request model in, a `CallToolResult` out.

The SDK's own function tools ignore unknown arguments, keep `$ref` in their schemas, coerce types and turn every
exception into a bare sentence. `RequestTool` keeps the SDK's registration and wire handling and replaces those four.
"""

import difflib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import BaseModel, ValidationError

from mask2former_mcp.errors import InvalidRequest, Mask2FormerError, NotReady
from mask2former_mcp.server.answers import refusal
from mask2former_mcp.server.schema import Schema, input_schema

logger = logging.getLogger(__name__)

LONGEST_S = 52.0  # many clients give up a call after a minute
Answer = CallToolResult | InputRequiredResult
Handler = Callable[[Any, Context[Any, Any]], Awaitable[Answer]]
SyncHandler = Callable[[Any], CallToolResult]


@dataclass(frozen=True)
class Behaviour:
    """The four annotations, always said together. They are hints for people's approval screens: keep them true."""

    title: str
    read_only: bool
    destructive: bool = False
    idempotent: bool = True
    open_world: bool = False
    starts: bool = False  # jobs; no annotation, but errors say whether one was started

    def annotations(self) -> ToolAnnotations:
        return ToolAnnotations(
            title=self.title,
            read_only_hint=self.read_only,
            destructive_hint=self.destructive,
            idempotent_hint=self.idempotent,
            open_world_hint=self.open_world,
        )


class InternalError(Mask2FormerError):
    """A fault of ours. The text of the cause goes to the server's stderr, not to the model."""

    code = "internal_error"


class RequestTool(Tool):
    """An SDK tool whose arguments are one pydantic model (`extra="forbid"`) and whose errors are structured."""

    request: type[BaseModel]
    handler: Handler
    starts: bool

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Answer:
        """Never raises for what the caller did or for what we did wrong; only the protocol's own errors pass."""
        try:
            with anyio.move_on_after(LONGEST_S):
                return await self.handler(parse(self.request, arguments), context)
            raise NotReady(
                f"{self.name} has no answer after {LONGEST_S:.0f} s.",
                fix="Call it again with the same arguments: what was read until now is kept.",
            )
        except Mask2FormerError as error:
            return refusal(error, starts=self.starts)
        except MCPError:
            raise
        except Exception as error:
            logger.exception("tool %s failed", self.name)
            return refusal(
                InternalError(
                    f"{self.name} failed inside the server ({type(error).__name__}).",
                    fix="Your arguments need not be wrong. Call doctor; the server's stderr has the trace.",
                ),
                starts=self.starts,
            )


def request_tool(
    name: str, description: str, request: type[BaseModel], handler: Handler, behaviour: Behaviour, output: Schema
) -> RequestTool:
    if request.model_config.get("extra") != "forbid":
        raise TypeError(f"{request.__name__} must forbid extra arguments")
    return RequestTool(
        fn=handler,
        name=name,
        title=behaviour.title,
        description=description,
        parameters=input_schema(request),
        # No output model: the answers are checked against the advertised schema by the tests, not at run time.
        fn_metadata=FuncMetadata(arg_model=ArgModelBase, output_schema=output),
        is_async=True,
        annotations=behaviour.annotations(),
        request=request,
        handler=handler,
        starts=behaviour.starts,
    )


def in_thread(handler: SyncHandler) -> Handler:
    """A blocking handler, run off the event loop. A cancelled call stops waiting; the work finishes alone."""

    async def handle(request: Any, _: Context[Any, Any]) -> Answer:
        return await anyio.to_thread.run_sync(handler, request, abandon_on_cancel=True)

    return handle


def parse(model: type[BaseModel], arguments: Mapping[str, Any]) -> Any:
    """Arguments as the model, strictly: no string for a number, no number for a boolean, no unknown name.

    Raises InvalidRequest naming each argument, the value, the rule and, for an unknown name, the nearest one.
    """
    try:
        # Through JSON, as it came over the wire: pydantic's strict mode then takes an object for a nested model.
        return model.model_validate_json(json.dumps(_as_the_schema_reads(model, arguments)), strict=True)
    except ValidationError as error:
        raise _invalid(model, error) from error


def _as_the_schema_reads(model: type[BaseModel], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Two readings that are not coercions: an object sent as its JSON text (some clients do), and 3.0 for 3."""
    properties = input_schema(model)["properties"]
    read = dict(arguments)
    for name, value in arguments.items():
        kind = properties.get(name, {}).get("type")
        if kind == "object" and isinstance(value, str):
            try:
                parsed = json.loads(value)
            except (ValueError, RecursionError):
                continue
            read[name] = parsed if isinstance(parsed, dict) else value
        elif kind == "integer" and isinstance(value, float) and value.is_integer():
            read[name] = int(value)
    return read


def _invalid(model: type[BaseModel], error: ValidationError) -> InvalidRequest:
    known = list(model.model_fields)
    problems = [_sentence(dict(item), known) for item in error.errors(include_url=False)[:10]]
    names = [".".join(str(part) for part in item["loc"]) for item in error.errors(include_url=False)[:10]]
    unknown = any(item["type"] == "extra_forbidden" for item in error.errors(include_url=False))
    fix = "Correct the named argument and call again."
    if unknown:
        hint = (
            " Keys of the training spec go into `overrides` (search_spec finds them)." if "overrides" in known else ""
        )
        fix = f"Arguments of this tool: {', '.join(known)}.{hint}"
    return InvalidRequest("; ".join(problems), fix=fix, details={"arguments": names})


def _sentence(item: Mapping[str, Any], known: list[str]) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "arguments"
    if item["type"] == "extra_forbidden" and len(item["loc"]) > 1:
        return f"unknown key '{where}'"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, known, n=3, cutoff=0.5)
        return f"unknown argument '{where}'" + (f"; nearest: {', '.join(near)}" if near else "")
    if item["type"] == "missing":
        return f"argument '{where}' is required"
    value = repr(item.get("input"))
    return f"{where}={value[:80]}: {item['msg']}"
