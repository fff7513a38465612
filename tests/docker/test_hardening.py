"""A hostile program in a job's container: what it can see, read, write and reach on a real daemon."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.jobs.contained import contained
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.platforms.docker import DockerPlatform, Limits
from mask2former_mcp.platforms.docker_daemon import Daemon
from mask2former_mcp.platforms.protocol import Bind, Task

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
BASE_IMAGE = os.environ.get("M2F_TEST_BASE_IMAGE", "m2f-base:bookworm")
PATIENCE_S = 60.0

PROGRAM = """#!/usr/bin/env python3
import json, os, socket, subprocess, sys
from pathlib import Path
spec, outside = Path("/job/spec.yaml"), sys.argv[-1].split(",")
def works(do):
    try:
        do()
    except (OSError, MemoryError, subprocess.SubprocessError) as error:
        return type(error).__name__ + ": " + str(error)
    return True
def write(path):
    with open(path, "w") as file:
        file.write("x")
def reach(address):
    socket.create_connection(address, 2).close()
def fork():
    children = []
    try:
        for _ in range(200):
            children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]))
    finally:
        for child in children:
            child.kill()
status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
data = next(Path("/data").glob("*/*"))
found = {
    "ids": [os.getuid(), os.getgid()], "groups": os.getgroups(),
    "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"], "seccomp": status["Seccomp"],
    "interfaces": sorted(os.listdir("/sys/class/net")),
    "environment": sorted(os.environ),
    "first": Path("/proc/1/cmdline").read_text().split("\\0")[0],
    "exists": {path: os.path.exists(path) for path in outside},
    "may": {
        "spec": works(lambda: write(spec)), "results": works(lambda: write("/results/x")),
        "tmp": works(lambda: write("/tmp/x")), "home": works(lambda: write(os.environ["HOME"] + "/x")),
    },
    "may_not": {
        **{path: works(lambda path=path: write(path)) for path in
           ("/x", "/etc/x", "/usr/x", "/data/x", str(data / "x"), str(data / "picture.png"), "/sys/x", "/dev/x")},
        "chmod": works(lambda: os.chmod(data, 0o777)), "unlink": works(lambda: os.unlink(data / "picture.png")),
        "setuid": works(lambda: os.setuid(0)), "chown": works(lambda: os.chown("/results/x", 0, 0)),
        "mknod": works(lambda: os.mknod("/results/device", 0o60600, os.makedev(8, 0))),
        "internet": works(lambda: reach(("1.1.1.1", 53))), "host": works(lambda: reach(("172.17.0.1", 22))),
        "metadata": works(lambda: reach(("169.254.169.254", 80))), "processes": works(fork),
    },
}
Path("/results/found.json").write_text(json.dumps(found))
Path("/results/link").symlink_to(outside[0])
"""


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """What the program found, run as a job of `contained` with a spec that names one folder of data."""
    home, data, program = tmp_path / "home", tmp_path / "data" / "images", tmp_path / "program.py"
    job = home / "jobs" / "train-1"
    (job / "results").mkdir(parents=True)
    data.mkdir(parents=True)
    (data / "picture.png").write_bytes(b"picture")
    data.chmod(0o777)
    (home / "config.toml").write_text("")
    program.write_text(PROGRAM)
    program.chmod(0o755)
    outside = [str(home / "config.toml"), str(program), "/var/run/docker.sock", "/run/docker.sock", "/root/.ssh"]
    folders = Folders(home=home, job=job, results=job / "results")
    task = Task(
        job_id="train-1", attempt=1, command=("mask2former", "-e", str(folders.spec), ",".join(outside)), job_dir=job,
        results_dir=folders.results, log_file=folders.log, devices=(), image=BASE_IMAGE,
        environment={"NGC_API_KEY": "word", "WANDB_API_KEY": "word", "PATH": "/nowhere", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    task = contained(task, {"dataset": {"img_dir": str(data)}, "encryption_key": "word"}, folders, "d" * 64)
    task = Task(**{**_fields(task), "binds": (*task.binds, Bind(program, "/usr/local/bin/mask2former"))})
    limits = Limits(memory_gb=0.5, shm_gb=0.1, pids=64)
    platform = DockerPlatform(home, limits, Daemon(os.environ.get("DOCKER_HOST")))
    handle = platform.submit(task)
    deadline = time.monotonic() + PATIENCE_S
    while platform.poll(handle).state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    platform.cancel(handle, grace_s=1)
    assert platform.poll(handle).exit_code == 0, list(platform.logs(handle))
    value: dict[str, Any] = json.loads((folders.results / "found.json").read_text())
    assert (data / "picture.png").read_bytes() == b"picture"
    assert [path.name for path in data.iterdir()] == ["picture.png"]
    return value


def _fields(task: Task) -> dict[str, Any]:
    return {name: getattr(task, name) for name in Task.__dataclass_fields__}


def test_a_hostile_program_has_its_results_and_nothing_else(found: dict[str, Any]) -> None:
    assert all(number not in (0, None) for number in found["ids"])
    assert 0 not in found["groups"]
    assert {int(value.strip(), 16) for value in found["capabilities"]} == {0}
    assert (found["no_new_privileges"].strip(), found["seccomp"].strip()) == ("1", "2")
    assert found["interfaces"] == ["lo"]
    assert "docker-init" in found["first"] or "tini" in found["first"]
    assert not {"NGC_API_KEY", "WANDB_API_KEY"} & set(found["environment"])
    assert not any(found["exists"].values()), found["exists"]
    assert set(found["may"].values()) == {True}, found["may"]
    assert [what for what, answer in found["may_not"].items() if answer is True] == [], found["may_not"]
