"""The MCP server: tools and resources over one set of services. It decides nothing."""

import contextlib
import logging
import threading
from collections.abc import AsyncIterator

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool

from mask2former_mcp.errors import Mask2FormerError
from mask2former_mcp.server.action_tools import action_tools
from mask2former_mcp.server.data_tools import data_tools
from mask2former_mcp.server.instructions import INSTRUCTIONS
from mask2former_mcp.server.job_tools import job_tools
from mask2former_mcp.server.resources import add_resources
from mask2former_mcp.server.services import Services
from mask2former_mcp.server.typed_contents import TypedServer
from mask2former_mcp.version import version

logger = logging.getLogger(__name__)
_RECONCILE_EVERY_S = 20.0


def build(services: Services, *, reconcile: bool = True) -> MCPServer[None]:
    """A server that answers both wire eras. `reconcile=False` is for tests that own their jobs."""
    tools: list[Tool] = [*action_tools(services), *data_tools(services), *job_tools(services)]

    @contextlib.asynccontextmanager
    async def lifespan(_: MCPServer[None]) -> AsyncIterator[None]:
        stop = threading.Event()
        if reconcile:
            threading.Thread(target=_keep_reconciling, args=(services, stop), daemon=True, name="reconcile").start()
        try:
            yield None
        finally:
            stop.set()

    server = TypedServer(
        "mask2former-mcp",
        title="Mask2Former",
        version=version(),
        instructions=INSTRUCTIONS,
        tools=tools,
        lifespan=lifespan,
        log_level="WARNING",
    )
    add_resources(server, services)
    return server


def _keep_reconciling(services: Services, stop: threading.Event) -> None:
    """Find jobs whose supervisor died, at the start and while this server lives. Several servers may do it: a lease
    in the store decides. A daemon thread, so that it never holds up an answer or the end of the process."""
    while not stop.is_set():
        try:
            services.jobs.reconcile()
        except (Mask2FormerError, OSError) as error:
            logger.warning("reconcile: %s", error)
        stop.wait(_RECONCILE_EVERY_S)
