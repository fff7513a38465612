"""What every platform must do. Another platform joins by another parameter of `platform`."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from mask2former_mcp.errors import NotAvailable
from mask2former_mcp.platforms import local
from mask2former_mcp.platforms.docker import DockerPlatform, Limits
from mask2former_mcp.platforms.docker_daemon import Daemon, Gone
from mask2former_mcp.platforms.local import LocalPlatform
from mask2former_mcp.platforms.locks import is_held
from mask2former_mcp.platforms.process import Identity, end, labelled, send
from mask2former_mcp.platforms.protocol import Bind, Handle, Observation, Platform, Task

pytestmark = pytest.mark.timeout(60)
PATIENCE_S = 20.0

PROGRAM = """#!/usr/bin/env python3
import os, signal, subprocess, sys, time
from pathlib import Path
verb = sys.argv[1]
print("verb", verb, flush=True)
Path("ran.txt").open("a").write(f"{os.getpid()}\\n")
if verb == "code": sys.exit(int(sys.argv[2]))
if verb == "die": os.kill(os.getpid(), int(sys.argv[2]))
if verb == "secret": print("the word is", sys.argv[2], flush=True)
if verb == "environment": print(sorted(os.environ), flush=True)
if verb == "deaf": signal.signal(signal.SIGTERM, signal.SIG_IGN)
if verb == "family":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path("child.txt").write_text(str(child.pid))
if verb == "eat": eaten = [bytearray(2**20) for _ in range(4000)]
if verb == "eat-in-a-child":
    subprocess.run([sys.executable, "-c", "eaten = [bytearray(2**20) for _ in range(4000)]"])
if verb in ("deaf", "family", "sleep"):
    Path("ready.txt").touch()
    time.sleep(600)
"""


SECRET = "hunter2-hunter2"
BASE_IMAGE = os.environ.get("M2F_TEST_BASE_IMAGE", "m2f-base:bookworm")


class Workshop:
    def __init__(self, platform: Platform, home: Path) -> None:
        self.platform = platform
        self.home = home

    def task(self, *words: str, **fields: Any) -> Task:
        job_dir = self.home / "jobs" / "train-1"
        job_dir.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "job_id": "train-1",
            "attempt": 1,
            "command": ("mask2former", *words),
            "job_dir": job_dir,
            "results_dir": job_dir / "results",
            "log_file": job_dir / "log.txt",
            "devices": (),
            "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
        }
        return Task(**{**values, **fields})

    def wait(self, handle: Handle) -> Observation:
        deadline = time.monotonic() + PATIENCE_S
        while (seen := self.platform.poll(handle)).state in ("waiting", "running"):
            assert time.monotonic() < deadline, f"still {seen}"
            time.sleep(0.02)
        return seen

    def ready(self, task: Task, name: str = "ready.txt") -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (task.job_dir / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def signalled(self, number: int) -> Observation:
        """How a process looks that a signal ended."""
        return Observation("exited", exit_code=-number)

    def processes_left(self, task: Task) -> list[Any]:
        told = [task.job_dir / name for name in ("ran.txt", "child.txt")]
        pids = [int(path.read_text()) for path in told if path.exists()]
        pids = [pid for pid in pids if psutil.pid_exists(pid)]
        return [pid for pid in pids if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


class DockerWorkshop(Workshop):
    """The same program in a small container, whose working folder is the job's."""

    def __init__(self, home: Path, program: Path) -> None:
        self.daemon = Daemon(os.environ.get("DOCKER_HOST"))
        super().__init__(DockerPlatform(home, Limits(memory_gb=0.25, shm_gb=0.1), self.daemon, (SECRET,)), home)
        self.program = program

    def task(self, *words: str, **fields: Any) -> Task:
        job_dir = self.home / "jobs" / "train-1"
        binds = (Bind(job_dir, "/results", read_only=False), Bind(self.program, "/usr/local/bin/mask2former"))
        return super().task(*words, **{"image": BASE_IMAGE, "binds": binds, **fields})

    def signalled(self, number: int) -> Observation:
        return Observation("exited", exit_code=128 + number)

    def processes_left(self, task: Task) -> list[Any]:
        name = self.platform.render(task)["name"]
        try:
            return [self.daemon.inspect(name)]
        except Gone:
            return []


@pytest.fixture
def in_docker(tmp_path: Path) -> Iterator[DockerWorkshop]:
    workshop = DockerWorkshop(tmp_path / "home", _program(tmp_path))
    yield workshop
    for attempt in (1, 2):
        workshop.daemon.remove(workshop.platform.render(workshop.task(attempt=attempt))["name"])


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def workshop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workshop]:
    if request.param == "docker":
        yield request.getfixturevalue("in_docker")
        return
    home = tmp_path / "home"
    yield Workshop(LocalPlatform(home, (sys.executable, str(_program(tmp_path)))), home)
    for process in psutil.process_iter():
        try:
            if process.environ().get("M2F_RUN", "").startswith(str(home)):
                process.kill()
        except psutil.Error:
            continue


def _program(folder: Path) -> Path:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("words", [("code", "0"), ("code", "7"), ("die", "9")])
def test_the_exit_code_is_told_also_to_another_process(workshop: Workshop, words: tuple[str, ...]) -> None:
    handle = workshop.platform.submit(workshop.task(*words))
    code = int(words[1])
    expected = workshop.signalled(code) if words[0] == "die" else Observation("exited", exit_code=code)
    assert workshop.wait(handle) == expected
    assert list(workshop.platform.logs(handle)) == [f"verb {words[0]}\n"]


def test_the_handle_is_known_before_the_start_and_is_plain_data(workshop: Workshop) -> None:
    task = workshop.task("sleep")
    before = workshop.platform.render(task)["handle"]
    assert workshop.platform.poll(before).state == "missing"
    assert list(workshop.platform.logs(before)) == []
    workshop.platform.cancel(before, grace_s=0.1)
    assert workshop.platform.submit(task) == before
    assert str(workshop.home) not in str(before)
    assert workshop.platform.poll(before).state == "running"


def test_one_attempt_starts_once_and_the_next_attempt_again(workshop: Workshop) -> None:
    task = workshop.task("sleep")
    first = workshop.platform.submit(task)
    workshop.ready(task)
    assert workshop.platform.submit(task) == first
    workshop.platform.cancel(first, grace_s=0.5)
    assert workshop.platform.submit(task) == first
    assert workshop.platform.poll(first).state == "exited"
    assert len((task.job_dir / "ran.txt").read_text().splitlines()) == 1
    workshop.wait(workshop.platform.submit(workshop.task("code", "0", attempt=2)))
    assert len((task.job_dir / "ran.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("verb", ["sleep", "deaf", "family"])
def test_cancel_returns_when_all_of_it_is_gone(workshop: Workshop, verb: str) -> None:
    task = workshop.task(verb)
    handle = workshop.platform.submit(task)
    workshop.ready(task)
    workshop.platform.cancel(handle, grace_s=0.3)
    assert workshop.platform.poll(handle) == workshop.signalled(9 if verb == "deaf" else 15)
    assert not workshop.processes_left(task)
    workshop.platform.cancel(handle, grace_s=0.3)


def test_a_secret_is_masked_in_the_log(workshop: Workshop) -> None:
    handle = workshop.platform.submit(workshop.task("secret", SECRET, secrets=(SECRET,)))
    workshop.wait(handle)
    deadline = time.monotonic() + PATIENCE_S
    while len(lines := list(workshop.platform.logs(handle))) < 2:
        assert time.monotonic() < deadline
    assert lines == ["verb secret\n", "the word is ***\n"]


def test_a_start_is_answered_at_once_however_long_the_work_with_secrets_takes(workshop: Workshop) -> None:
    """The process that masks them outlives the start: holding a pipe of ours open, it once made each start wait."""
    began = time.monotonic()
    handle = workshop.platform.submit(workshop.task("sleep", secrets=(SECRET,)))
    assert time.monotonic() - began < PATIENCE_S
    assert workshop.platform.poll(handle).state == "running"
    workshop.platform.cancel(handle, grace_s=0.5)


def test_the_process_sees_the_given_environment_and_its_label_only(workshop: Workshop) -> None:
    task = workshop.task(
        "environment", environment={"PATH": "/usr/local/bin:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "GPU-1"}
    )
    handle = workshop.platform.submit(task)
    workshop.wait(handle)
    seen = set(eval("".join(list(workshop.platform.logs(handle))[1:])))
    assert {"PATH", "CUDA_VISIBLE_DEVICES"} <= seen <= {
        "PATH", "CUDA_VISIBLE_DEVICES", "M2F_RUN", "LC_CTYPE", "HOME", "HOSTNAME",
    }  # fmt: skip


@pytest.mark.docker
@pytest.mark.parametrize(("verb", "code"), [("eat", 137), ("eat-in-a-child", 0)])
def test_the_memory_limit_is_told_whoever_in_the_container_met_it(
    in_docker: DockerWorkshop, verb: str, code: int
) -> None:
    handle = in_docker.platform.submit(in_docker.task(verb))
    assert in_docker.wait(handle) == Observation("exited", exit_code=code, out_of_memory=True)
    in_docker.platform.cancel(handle, grace_s=1)
    assert in_docker.platform.poll(handle) == Observation("exited", exit_code=code, out_of_memory=True)


def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    workshop = Workshop(LocalPlatform(tmp_path, ("/nowhere/python",)), tmp_path)
    with pytest.raises(NotAvailable, match="/nowhere/python"):
        workshop.platform.submit(workshop.task("code", "0"))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Workshop]:
    """The program as a child of this machine."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    workshop = Workshop(LocalPlatform(tmp_path, (sys.executable, str(program))), tmp_path)
    yield workshop
    for attempt in (1, 2):
        end(of_run(workshop.task(), attempt), grace_s=0.0)


def of_run(task: Task, attempt: int = 1) -> list[Identity]:
    """What lives of an attempt: launchers, and all that they started."""
    run = str(task.job_dir / "run" / str(attempt))
    return [*labelled("M2F_LAUNCH", run), *labelled("M2F_RUN", run)]


def test_a_start_that_was_given_up_never_happens_later(here: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher hangs between its fork and the start of the command: here, in opening a log that nobody reads."""
    monkeypatch.setattr(local, "_START_TIMEOUT_S", 1.5)
    task = here.task("code", "0")
    os.mkfifo(task.log_file)
    with pytest.raises(NotAvailable, match="said nothing"):
        here.platform.submit(task)
    never_happens(here, task)


def test_a_start_whose_caller_is_gone_is_waited_for_and_can_be_cancelled(here: Workshop) -> None:
    task = here.task("code", "0")
    os.mkfifo(task.log_file)
    handle = here.platform.render(task)["handle"]
    caller = os.fork()
    if caller == 0:
        here.platform.submit(task)
        os._exit(0)
    lock, deadline = task.job_dir / "run/1/launch.lock", time.monotonic() + PATIENCE_S
    while not is_held(lock):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    assert here.platform.poll(handle) == Observation("waiting", detail="starting")
    here.platform.cancel(handle, grace_s=0.1)
    never_happens(here, task)


def never_happens(workshop: Workshop, task: Task) -> None:
    assert not of_run(task)
    # A launcher that still lived would go on now.
    reader = os.open(task.log_file, os.O_RDONLY | os.O_NONBLOCK)
    time.sleep(0.5)
    os.close(reader)
    assert not (task.job_dir / "ran.txt").exists()
    assert workshop.platform.poll(workshop.platform.render(task)["handle"]).state == "missing"


def test_what_cannot_be_recorded_does_not_run(here: Workshop) -> None:
    task = here.task("sleep", secrets=(SECRET,))
    (task.job_dir / "run/1/process.tmp").mkdir(parents=True)
    with pytest.raises(NotAvailable, match=r"could not be started: .*process\.tmp"):
        here.platform.submit(task)
    assert not of_run(task)


def test_a_launcher_killed_before_its_record_leaves_nothing_behind(here: Workshop) -> None:
    """It hangs in writing the record, which here is a pipe that nobody reads; the command runs already."""
    task = here.task("sleep", secrets=(SECRET,))
    (task.job_dir / "run/1").mkdir(parents=True)
    os.mkfifo(task.job_dir / "run/1/process.tmp")
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(here.platform.submit, task)
        here.ready(task)
        for launching in labelled("M2F_LAUNCH", str(task.job_dir / "run/1")):
            send(launching, signal.SIGKILL)
        with pytest.raises(NotAvailable, match="could not be started"):
            start.result(PATIENCE_S)
    assert not of_run(task)


def test_nothing_of_an_earlier_attempt_runs_beside_a_later_one(here: Workshop) -> None:
    first = here.platform.submit(here.task("sleep"))
    here.ready(here.task())
    for record in ("process.json", "launch.lock"):  # as if its launcher had not lived to write it
        (here.home / first["run"] / record).unlink()
    second = here.platform.submit(here.task("sleep", attempt=2))
    assert not of_run(here.task())
    assert here.platform.poll(second).state == "running"


def test_a_code_that_is_written_while_somebody_looks_is_seen(here: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = here.platform.submit(here.task("code", "0"))
    here.wait(handle)
    run = here.home / handle["run"]
    witness = json.loads((run / "process.json").read_text())["launcher"]
    later = (run / "exit_status.json").rename(run / "later")

    def ends_meanwhile(identity: Identity) -> bool:
        if identity == witness:
            later.rename(run / "exit_status.json")
        return False

    monkeypatch.setattr(local, "alive", ends_meanwhile)
    assert here.platform.poll(handle) == Observation("exited", exit_code=0)


def test_the_local_rendering_is_pure_and_whole(tmp_path: Path) -> None:
    task = Workshop(LocalPlatform(tmp_path, ()), tmp_path).task("train", "-e", "spec.yaml", secrets=("word",))
    job = tmp_path / "jobs" / "train-1"
    assert LocalPlatform(tmp_path, ("python", "-m", "engine")).render(task) == {
        "argv": ["python", "-m", "engine", "train", "-e", "spec.yaml"],
        "cwd": str(job),
        "env": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
        "log": str(job / "log.txt"),
        "run": str(job / "run/1"),
        "secrets": ["word"],
        "handle": {"platform": "local", "run": "jobs/train-1/run/1", "log": "jobs/train-1/log.txt"},
    }
