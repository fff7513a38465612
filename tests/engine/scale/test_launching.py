"""Starting, watching and ending the processes of a run: with small programs in the place of training processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mask2former_mcp.engine import launch, nodes
from mask2former_mcp.engine.interruption import AtOnce, Interrupted
from mask2former_mcp.engine.launch import RunFailed
from mask2former_mcp.engine.processes import Processes

WAIT_S = 30
PRELUDE = """
import json, os, pathlib, signal, sys, time
from mask2former_mcp.engine import interruption
from mask2former_mcp.engine.rank import Channel
rank = 2 * int(os.environ["NODE_RANK"]) + int(os.environ["LOCAL_RANK"])
channel = Channel(os.environ)
here = pathlib.Path(sys.argv[1])
def ready(text=""):
    (here / f".{rank}").write_text(text)
    (here / f".{rank}").rename(here / f"{rank}")
"""
SLEEP = "ready(str(os.getpid())); time.sleep(60)"
STOPS_WHEN_ASKED = """
with interruption.deferred() as asked:
    ready(str(os.getpid()))
    while True:
        time.sleep(0.02)
        try:
            asked.obey()
        except interruption.Interrupted as error:
            channel.failure("interrupted")
            sys.exit(128 + error.signal_number)
"""


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 1.0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def program(folder: Path, code: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE + code, str(folder)]


def of(*codes: str) -> str:
    """Process n runs the n-th of these."""
    return f"exec({list(codes)!r}[rank])"


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_every_process_knows_its_place(tmp_path: Path) -> None:
    names = ["NODE_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    launch.run(Processes(each=2), program(tmp_path, f"ready(json.dumps([os.environ[name] for name in {names}]))"))
    first, second = (json.loads((tmp_path / name).read_text()) for name in "01")
    assert first[:4] == ["0", "0", "2", "127.0.0.1"]
    assert second == ["0", "1", *first[2:]]
    assert int(first[4]) > 0


def test_the_words_of_the_process_that_failed_first_are_the_cause(tmp_path: Path) -> None:
    lost = 'channel.failure("RuntimeError: [gloo] Connection closed by peer"); channel.leave(1)'
    cause = 'time.sleep(0.5); channel.failure("Data error: 5.png is cut off"); channel.leave(1)'
    with pytest.raises(RunFailed, match=r"^Data error: 5.png is cut off \(process 2 of 3\)$"):
        launch.run(Processes(each=3), program(tmp_path, of(lost, cause, SLEEP)))
    assert not psutil.pid_exists(int((tmp_path / "2").read_text()))


def test_a_process_that_aborts_is_the_cause_where_no_other_has_a_better_one(tmp_path: Path) -> None:
    aborts, lost = (
        "os.abort()",
        'time.sleep(0.5); channel.failure("NCCL error: remote process exited"); channel.leave(1)',
    )
    cause = 'time.sleep(0.5); channel.failure("CUDA out of memory."); channel.leave(1)'
    for other, told in (
        (cause, r"CUDA out of memory. \(process 2 of 2\)"),
        (lost, "a process was killed by SIGABRT .*"),
    ):
        with pytest.raises(RunFailed, match=f"^{told}$"):
            launch.run(Processes(each=2), program(tmp_path, of(aborts, other)))


def test_a_process_that_was_killed_is_the_cause(tmp_path: Path) -> None:
    lost = "time.sleep(0.2); channel.failure('RuntimeError: NCCL error'); channel.leave(1)"
    with pytest.raises(RunFailed, match=r"killed by SIGKILL: .* out of memory \(process 2 of 2\)"):
        launch.run(Processes(each=2), program(tmp_path, of(lost, "os.kill(os.getpid(), signal.SIGKILL)")))


def test_a_process_that_says_nothing_is_told_by_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"exit code 7 and said nothing \(process 1 of 2\)"):
        launch.run(Processes(each=2), program(tmp_path, of("sys.exit(7)", "ready()")))


def signalled(pid: Callable[[], int], tmp_path: Path, count: int) -> threading.Thread:
    """Signals a process when both programs are at work."""

    def act() -> None:
        until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
        for _ in range(count):
            os.kill(pid(), signal.SIGTERM)
            time.sleep(0.3)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_a_signal_reaches_all_processes_and_is_passed_on_once(tmp_path: Path) -> None:
    thread = signalled(os.getpid, tmp_path, 1)
    with pytest.raises(Interrupted) as caught:
        launch.run(Processes(each=2), program(tmp_path, STOPS_WHEN_ASKED))
    thread.join()
    assert not isinstance(caught.value, AtOnce)
    assert caught.value.signal_number == signal.SIGTERM


def test_a_process_that_was_interrupted_alone_ends_the_run_as_interrupted(tmp_path: Path) -> None:
    thread = signalled(lambda: int((tmp_path / "1").read_text()), tmp_path, 1)
    with pytest.raises(Interrupted):
        launch.run(Processes(each=2), program(tmp_path, of(SLEEP, STOPS_WHEN_ASKED)))
    thread.join()


def test_a_second_signal_ends_processes_that_do_not_listen(tmp_path: Path) -> None:
    deaf = "signal.signal(interruption.RELAY, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP
    thread = signalled(os.getpid, tmp_path, 2)
    with pytest.raises(AtOnce):
        launch.run(Processes(each=2), program(tmp_path, deaf))
    thread.join()
    assert not any(psutil.pid_exists(int((tmp_path / name).read_text())) for name in "01")


PARENT = """
import json, sys
from mask2former_mcp.engine import launch
from mask2former_mcp.engine.processes import Processes
launch.GRACE_S = 1.0
try:
    launch.run(Processes(**json.loads(sys.argv[1])), json.loads(sys.argv[2]))
except launch.RunFailed as error:
    sys.exit(f"failed: {error}")
"""


def command(place: dict[str, object], child: list[str]) -> "subprocess.Popen[str]":
    """What stands for `mask2former train` on a node."""
    arguments = [sys.executable, "-c", PARENT, json.dumps(place), json.dumps(child)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def test_processes_do_not_outlive_the_command_that_started_them(tmp_path: Path) -> None:
    parent = command({"each": 2}, program(tmp_path, SLEEP))
    until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
    pids = [int((tmp_path / name).read_text()) for name in "01"]
    parent.kill()
    parent.communicate()
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def two_nodes(tmp_path: Path, code: str) -> tuple[Processes, "subprocess.Popen[str]", list[str]]:
    place = {"nodes": 2, "each": 2, "address": "127.0.0.1", "port": free_port()}
    child = program(tmp_path, code)
    return Processes(**place), command({**place, "node": 1}, child), child  # type: ignore[arg-type]


def test_all_nodes_end_well_together(tmp_path: Path) -> None:
    first, other, child = two_nodes(tmp_path, "ready(os.environ['MASTER_PORT']); time.sleep(0.2 * rank)")
    launch.run(first, child)
    assert other.wait(WAIT_S) == 0
    assert len({(tmp_path / name).read_text() for name in "0123"}) == 1
    assert (tmp_path / "0").read_text() != str(first.port)


def test_processes_listen_where_their_node_reaches_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "chosen")
    told = "ready(json.dumps([os.environ.get(name) for name in ('GLOO_SOCKET_IFNAME', 'NCCL_SOCKET_IFNAME')]))"
    first, other, child = two_nodes(tmp_path, told)
    launch.run(first, child)
    assert other.wait(WAIT_S) == 0
    addresses = psutil.net_if_addrs()
    for name in "0123":
        interface, kept = json.loads((tmp_path / name).read_text())
        assert "127.0.0.1" in [address.address for address in addresses[interface]]
        assert kept == "chosen"
    launch.run(Processes(each=1), program(tmp_path, told))
    assert json.loads((tmp_path / "0").read_text()) == [None, "chosen"]


def test_a_failure_on_another_node_is_told_on_both(tmp_path: Path) -> None:
    bad = 'channel.failure("out of memory"); channel.leave(1)'
    first, other, child = two_nodes(tmp_path, of(SLEEP, SLEEP, SLEEP, bad))
    with pytest.raises(RunFailed, match=r"^out of memory \(process 4 of 4, node 1\)$"):
        launch.run(first, child)
    assert other.communicate(timeout=WAIT_S)[1].strip().endswith("failed: out of memory (process 4 of 4, node 1)")


def test_a_failure_on_the_first_node_ends_the_other(tmp_path: Path) -> None:
    bad = 'channel.failure("the loss is nan"); channel.leave(1)'
    first, other, child = two_nodes(tmp_path, of(bad, SLEEP, SLEEP, SLEEP))
    with pytest.raises(RunFailed, match=r"^the loss is nan \(process 1 of 4, node 0\)$"):
        launch.run(first, child)
    assert "failed: the loss is nan (process 1 of 4, node 0)" in other.communicate(timeout=WAIT_S)[1]


def test_a_node_that_disappears_ends_the_run(tmp_path: Path) -> None:
    first, other, child = two_nodes(tmp_path, SLEEP)

    def kill() -> None:
        until(lambda: all((tmp_path / name).exists() for name in "0123"))
        other.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(RunFailed, match="node 1 is gone"):
        launch.run(first, child)
    thread.join()
    other.communicate()
    assert not any(psutil.pid_exists(int((tmp_path / name).read_text())) for name in "01")


def test_nodes_that_were_started_differently_are_refused_on_both_sides(tmp_path: Path) -> None:
    first, other, child = two_nodes(tmp_path, "")
    with pytest.raises(ValueError, match=r"node 1 was started for 2 nodes with 2 processes each, .* with 3"):
        launch.run(Processes(2, 3, 0, first.address, first.port), child)
    assert "was started for 2 nodes with 2 processes each" in other.communicate(timeout=WAIT_S)[1]


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_does_not_come_is_named(node: int) -> None:
    with pytest.raises(TimeoutError, match=r"NODE_RANK 0 to 1 .* MASTER_ADDR and MASTER_PORT"):
        nodes.join(Processes(2, 1, node, "127.0.0.1", free_port()), seconds=0.3)


def test_a_stranger_at_the_port_is_no_node(tmp_path: Path) -> None:
    first, other, child = two_nodes(tmp_path, "ready()")
    stop = threading.Event()

    def stranger() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection((first.address, first.port), timeout=1) as line:
                    line.sendall(b'GET / HTTP/1.1\r\n\r\n{"node": 9}\n')
            except OSError:
                time.sleep(0.05)

    thread = threading.Thread(target=stranger)
    thread.start()
    try:
        launch.run(first, child)
    finally:
        stop.set()
        thread.join()
    assert other.wait(WAIT_S) == 0
    other.communicate()
