"""One of several processes of a run, as seen from inside: it reports how it ended, and never outlives its parent."""

import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import NoReturn

from mask2former_mcp.engine.processes import CHANNEL

ORPHANED = 70  # exit code
_MOST_BYTES = 1 << 14  # of a report


class Channel:
    """The socket to the process that started this one (launch.py), which reads the report and never writes.

    Has the methods of a StatusLog that say how a run began and ended: of several processes one alone writes those.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._socket = socket.socket(fileno=int(environ[CHANNEL]))
        threading.Thread(target=self._end_with_parent, daemon=True, name="parent").start()

    def started(self, message: str) -> None:
        """Its parent has said so."""

    def success(self, message: str) -> None:
        """Its exit code says so."""

    def failure(self, message: str) -> None:
        self._socket.sendall(message.encode()[:_MOST_BYTES])

    def leave(self, code: int) -> NoReturn:
        """Ends this process at once. A normal exit could wait for others that wait for this one, or for itself: torch
        2.13 takes gloo's groups down with the interpreter locked, and their threads may need it to end (seen).
        """
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _end_with_parent(self) -> None:
        if not self._socket.recv(1):  # that is: its other end was closed
            print("mask2former: the command that started this process is gone", file=sys.stderr, flush=True)
            os._exit(ORPHANED)  # the main thread may be waiting for other processes for a long time
