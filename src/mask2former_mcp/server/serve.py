"""Running the server: stdio for one client, Streamable HTTP for several, the latter on the loopback only."""

import logging
import os
import sys
from collections.abc import Mapping

from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8765


def serve_stdio(environ: Mapping[str, str] = os.environ) -> None:
    _log_to_stderr()
    build(Services(environ)).run("stdio")


def serve_http(port: int = DEFAULT_PORT, environ: Mapping[str, str] = os.environ) -> None:
    """There is no authentication yet, so there is no way to bind another interface; the SDK checks Host and Origin."""
    _log_to_stderr()
    print(f"mask2former-mcp over HTTP: http://{LOOPBACK}:{port}/mcp", file=sys.stderr, flush=True)
    build(Services(environ)).run("streamable-http", host=LOOPBACK, port=port)


def _log_to_stderr() -> None:
    """Plain lines; the SDK would otherwise draw boxes around tracebacks. A handler that is there already stays."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
