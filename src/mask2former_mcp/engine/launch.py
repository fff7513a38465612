"""Starts the processes of a run on this node, watches them, and ends them all when one of them ends badly.

It imports no torch and trains nothing, so that whatever happens to a training process, somebody is left who can end the
others and say why. A signal is passed on to all of them, and they agree on the step at which they stop (group.py).
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from mask2former_mcp.engine import interruption, nodes
from mask2former_mcp.engine.interruption import Interrupted
from mask2former_mcp.engine.nodes import Message, Nodes
from mask2former_mcp.engine.processes import CHANNEL, Processes

GRACE_S = 30.0  # for the others, once one has ended: to finish a file, or to notice
VERDICT_S = 2 * GRACE_S  # for the first node to say what the cause was
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_POLL_S = 0.1
_INTERRUPTIONS = (signal.SIGTERM, signal.SIGINT, interruption.RELAY)
_LOST = ("gloo", "NCCL", "TCPStore", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class RunFailed(Exception):
    """A process failed, here or on another node. The message is its own, ready to be shown."""


@dataclass(frozen=True, slots=True)
class End:
    """rank: of the process; code: its exit code, negative for a signal; told: its report, empty where it left none."""

    rank: int
    code: int
    told: str = ""

    @property
    def interrupted_by(self) -> int | None:
        """The signal that it was asked to end with."""
        return next((n for n in _INTERRUPTIONS if self.code in (128 + n, -n)), None)

    @property
    def weight(self) -> int:
        """How good an explanation it is for the ends of all others; the least is the best. Above 1 it is likely that
        another ended first: gloo and NCCL abort a process whose partner is gone."""
        if self.interrupted_by is not None:
            return 1
        if self.code < 0:
            return 2 if self.code == -signal.SIGABRT else 0
        return 3 if not self.told or any(word in self.told for word in _LOST) else 1

    def explanation(self, processes: Processes) -> str:
        where = f"process {self.rank + 1} of {processes.total}"
        where += f", node {self.rank // processes.each}" if processes.nodes > 1 else ""
        if self.told:
            return f"{self.told} ({where})"
        if self.code < 0:
            name = signal.Signals(-self.code).name
            hint = ": the kernel does that when the machine is out of memory" if name == "SIGKILL" else ""
            return f"a process was killed by {name}{hint} ({where})"
        return f"a process ended with exit code {self.code} and said nothing ({where}); the log may tell more"


class Rank:
    """One started process."""

    def __init__(self, process: "subprocess.Popen[bytes]", channel: socket.socket, rank: int) -> None:
        self.process, self.rank = process, rank
        self._channel = channel
        self.killed = False  # by us

    def end(self) -> End | None:
        """How it ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        told = b""
        with suppress(OSError):
            while part := self._channel.recv(1 << 14):
                told += part
        return End(self.rank, code, told.decode(errors="replace"))

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.killed = True
        self._channel.close()


def run(processes: Processes, command: Sequence[str]) -> None:
    """Runs the command in every process of this node until all have ended.

    Raises Interrupted when they ended on request, RunFailed with the cause when one of them, on any node, failed, and
    what `nodes.join` raises.
    """
    on = f"{processes.nodes} nodes x {processes.each}" if processes.nodes > 1 else "on this machine"
    print(f"{processes.total} processes share the work ({on})", flush=True)
    others = nodes.join(processes)
    try:
        with interruption.deferred() as asked, _started(processes, others, command) as ranks:
            _Watch(processes, ranks, others, asked).until_the_end()
    finally:
        others.close()


@contextmanager
def _started(processes: Processes, others: Nodes, command: Sequence[str]) -> Iterator[list[Rank]]:
    """This node's processes; those that still run at the end are killed."""
    ranks: list[Rank] = []
    try:
        for local in range(processes.each):
            ranks.append(_start(processes, others, local, command))
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()


def _start(processes: Processes, others: Nodes, local: int, command: Sequence[str]) -> Rank:
    rank = processes.node * processes.each + local
    ours, theirs = socket.socketpair()
    ours.setblocking(False)  # a worker of that process may hold the other end a little longer
    interface = others.interface()
    environment = {
        # Left alone, gloo listens at the address of the host's name, which on many machines is one of the loopback.
        **(dict.fromkeys(INTERFACES, interface) if interface else {}),
        **os.environ,
        "NODE_RANK": str(processes.node),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(processes.each),
        "MASTER_ADDR": processes.address if processes.nodes > 1 else "127.0.0.1",
        "MASTER_PORT": str(others.port),
        CHANNEL: str(theirs.fileno()),
    }
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=None if rank == 0 else subprocess.DEVNULL,  # they would all say the same
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    return Rank(process, ours, rank)


@dataclass
class _Watch:
    """ends: the bad ones, in the order in which they were seen, of whatever node."""

    processes: Processes
    ranks: Sequence[Rank]
    others: Nodes
    asked: interruption.Request
    ends: list[End] = field(default_factory=list)
    told_to_stop: bool = False  # by the first node
    verdict: Message | None = None  # likewise: {"cause": text, "signal": number or None}
    _relayed: bool = False

    def __post_init__(self) -> None:
        self.running = {rank.rank: rank for rank in self.ranks}
        self.first = self.processes.node == 0
        self.away = set(range(1, self.processes.nodes)) if self.first else {0}

    def until_the_end(self) -> None:
        """Returns when all processes of this node, and on the first node all others, have ended well."""
        while self.running or (self.first and self.away):
            self._look()
            if self.ends or self.told_to_stop:
                raise self._cause()
        self.others.tell({"done": True})

    def _look(self) -> None:
        """Passes a signal on, then takes in for a moment who has ended, here and elsewhere."""
        if self.asked.signal_number is not None and not self._relayed:
            self._relayed = True
            for rank in self.running.values():
                rank.process.send_signal(interruption.RELAY)
        for number, rank in list(self.running.items()):
            if (end := rank.end()) is not None:
                del self.running[number]
                if end.code:
                    self.ends.append(end)
                    self.others.tell({"end": asdict(end)})
        for node, message in self.others.wait(_POLL_S):
            self._hear(node, message)

    def _hear(self, node: int, message: Message | None) -> None:
        if message is None:
            if node in self.away:
                self.away.discard(node)
                self.ends.append(End(node * self.processes.each, 1, f"node {node} is gone: its command has ended"))
        elif "done" in message:
            self.away.discard(node)
        elif "end" in message and (end := _read(message["end"])) is not None:
            self.ends.append(end)
        elif not self.first:
            self.told_to_stop = True
            self.verdict = message if "cause" in message else None

    def _cause(self) -> Exception:
        """Ends all processes of this node and tells what the first trouble was, on whatever node."""
        if self.first:
            self.others.tell({"stop": True})
        deadline = time.monotonic() + GRACE_S
        while self.running and time.monotonic() < deadline:
            self._look()
        for rank in self.running.values():
            rank.kill()
        self.running = {}
        if not self.first:
            deadline = time.monotonic() + VERDICT_S
        while self._could_learn_more() and time.monotonic() < deadline:
            self._look()
        best = min(self.ends, key=lambda end: end.weight, default=None)
        text = best.explanation(self.processes) if best is not None else "the first node ended the run"
        number = best.interrupted_by if best is not None else None
        if self.first:
            self.others.tell({"cause": text, "signal": number})
        elif self.verdict is not None:
            text, number = str(self.verdict["cause"]), self.verdict.get("signal")
        if number in _INTERRUPTIONS:
            return Interrupted(self.asked.signal_number or (signal.SIGTERM if number == interruption.RELAY else number))
        return RunFailed(text)

    def _could_learn_more(self) -> bool:
        """The first node: whether it knows but consequences yet. The others: whether it has not spoken yet."""
        if not self.away:
            return False
        return min(end.weight for end in self.ends) > 1 if self.first else self.verdict is None


def _read(found: Any) -> End | None:
    """What another node reports, if it has the form of an end."""
    try:
        return End(int(found["rank"]), int(found["code"]), str(found["told"]))
    except (TypeError, KeyError, ValueError):
        return None
