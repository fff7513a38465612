"""What the commands on several nodes tell each other: that they are there, and why they end.

The first node listens on MASTER_PORT, the others connect: a line of JSON a message, read as data and nothing else.
Their training processes talk over sockets of their own; this line stays open beside those, so that a node that
disappears is noticed at once, and so that the first node, whose status.json people read, can say what happened on
another.
"""

import json
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import psutil

from mask2former_mcp.engine.processes import Processes

JOIN_S = 600.0  # nodes of one job start at different times: images are pulled meanwhile
MOST_BYTES = 1 << 16  # of one message
_RETRY_S = 0.2
_HELLO_S = 10.0  # a stranger that connects and says nothing must not keep the others waiting
_SILENT_S = 10  # until a connection that says nothing is probed; a lost one is noticed after three times as long
Message = dict[str, Any]


class Received(NamedTuple):
    """message: None when the connection to that node has ended."""

    node: int
    message: Message | None


class Line:
    """A socket that carries messages."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.open = True
        self._rest = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", _SILENT_S), ("TCP_KEEPINTVL", _SILENT_S), ("TCP_KEEPCNT", 2)):
            if hasattr(socket, option):  # macOS names them otherwise
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, message: Message) -> None:
        """A connection that has ended takes it as well: its end is for `receive` to tell."""
        with suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """What has come, after `select` said that something has; marks the line closed at its end."""
        try:
            data = self.socket.recv(MOST_BYTES)
        except OSError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            found = [json.loads(line) for line in lines]
        except ValueError:
            found, data = [], b""
        if not data or len(self._rest) > MOST_BYTES:
            self.open = False
        return [message for message in found if isinstance(message, dict)]


class Nodes:
    """The lines of this node: to all others on the first one, to the first one elsewhere; none with a single node.

    port: where the first node's first process is to listen for the others.
    """

    def __init__(self, port: int, lines: Mapping[int, Line]) -> None:
        self.port = port
        self._lines = dict(lines)

    def interface(self) -> str | None:
        """The network interface by which this node reaches the others; None with a single node."""
        for line in self._lines.values():
            own = _plain(line.socket.getsockname()[0])
            for name, addresses in psutil.net_if_addrs().items():
                if any(_plain(address.address) == own for address in addresses):
                    return name
        return None

    def tell(self, message: Message) -> None:
        for line in self._lines.values():
            line.send(message)

    def wait(self, seconds: float) -> list[Received]:
        """What comes within the time; returns early when something has."""
        open_lines = {line.socket: node for node, line in self._lines.items() if line.open}
        if not open_lines:
            time.sleep(seconds)
            return []
        found = []
        for ready in select.select(list(open_lines), [], [], seconds)[0]:
            node = open_lines[ready]
            line = self._lines[node]
            found += [Received(node, message) for message in line.receive()]
            if not line.open:
                found.append(Received(node, None))
        return found

    def close(self) -> None:
        for line in self._lines.values():
            line.socket.close()


def join(processes: Processes, *, seconds: float = JOIN_S) -> Nodes:
    """Meets the other nodes. Raises TimeoutError when one does not come, ValueError when one was started otherwise."""
    if processes.nodes == 1:
        return Nodes(_free_port(), {})
    deadline = time.monotonic() + seconds
    return _gather(processes, deadline) if processes.node == 0 else _connect(processes, deadline)


def _gather(processes: Processes, deadline: float) -> Nodes:
    lines: dict[int, Line] = {}
    with _listening(processes.port) as server:
        while len(lines) < processes.nodes - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                line = Line(server.accept()[0])
            except TimeoutError:
                absent = sorted(set(range(1, processes.nodes)) - set(lines))
                raise TimeoutError(f"node {absent[0]} of {processes.nodes} did not come: {_hint(processes)}") from None
            hello = _first_message(line, min(deadline, time.monotonic() + _HELLO_S))
            node = hello.get("node")
            if not isinstance(node, int) or not 0 < node < processes.nodes or node in lines:
                line.socket.close()  # none of ours, or one that was started twice
                continue
            lines[node] = line
            if (theirs := [hello.get("nodes"), hello.get("each")]) != [processes.nodes, processes.each]:
                reason = (
                    f"node {node} was started for {theirs[0]} nodes with {theirs[1]} processes each, the first node for"
                    f" {processes.nodes} with {processes.each}: give all nodes the same spec, WORLD_SIZE and"
                    " NUM_GPU_PER_NODE"
                )
                for each in lines.values():
                    each.send({"refused": reason})
                raise ValueError(reason)
    port = _free_port()
    for line in lines.values():
        line.send({"port": port})
    return Nodes(port, lines)


def _connect(processes: Processes, deadline: float) -> Nodes:
    while True:
        try:
            connection = socket.create_connection((processes.address, processes.port), timeout=5)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the first node does not answer ({error}): {_hint(processes)}") from error
            time.sleep(_RETRY_S)
    connection.settimeout(None)
    line = Line(connection)
    line.send({"node": processes.node, "nodes": processes.nodes, "each": processes.each})
    answer = _first_message(line, deadline)
    if "refused" in answer:
        raise ValueError(str(answer["refused"]))
    if not isinstance(answer.get("port"), int):
        raise TimeoutError(f"the first node did not go on: {_hint(processes)}")
    return Nodes(answer["port"], {0: line})


def _first_message(line: Line, deadline: float) -> Message:
    """The other side's first words; empty when it says none in time."""
    while line.open and (left := deadline - time.monotonic()) > 0:
        if select.select([line.socket], [], [], left)[0] and (found := line.receive()):
            return found[0]
    return {}


def _plain(address: str) -> str:
    """Without what a socket for both families, or a link's own address, adds to it."""
    return address.removeprefix("::ffff:").partition("%")[0]


def _listening(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def _hint(processes: Processes) -> str:
    return (
        f"start the command on all {processes.nodes} nodes, with NODE_RANK 0 to {processes.nodes - 1} and the same"
        f" MASTER_ADDR and MASTER_PORT (here {processes.address} and {processes.port}), reachable between them"
    )
