"""Processes, locks, devices, environments."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former_mcp.errors import NotReady
from mask2former_mcp.planning.machine import look
from mask2former_mcp.planning.place import check_gpus
from mask2former_mcp.platforms import devices
from mask2former_mcp.platforms.devices import gpus, inventory, read_listing
from mask2former_mcp.platforms.environment import child_environment, secrets_in
from mask2former_mcp.platforms.locks import ProcessLock, is_held
from mask2former_mcp.platforms.process import alive, end, identify, labelled
from mask2former_mcp.settings import Settings

LISTING = "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559\n1, GPU-bbbb, NVIDIA H100 80GB HBM3, 81559\nbroken line\n"


def sleeper(**variables: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, **variables})


def test_a_process_is_itself_until_it_ends_and_never_somebody_else() -> None:
    process = sleeper()
    identity = identify(process.pid)
    assert alive(identity)
    assert not alive({"pid": process.pid, "birth": "another birth"})
    assert not alive({})
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped: a zombie
    assert not alive(identity)
    assert identify(process.pid) is None
    process.wait()
    assert not alive(identity)
    assert not alive(None)


def test_processes_are_found_by_their_label_and_ended() -> None:
    process, other = sleeper(M2F_RUN="/x/1"), sleeper(M2F_RUN="/x/12")
    try:
        found = labelled("M2F_RUN", "/x/1")
        assert [identity["pid"] for identity in found] == [process.pid]
        end(found, grace_s=2.0)
        assert process.wait(5) != 0
        assert alive(identify(other.pid))
    finally:
        other.kill()
        other.wait()


def test_a_lock_is_exclusive_and_released_by_death(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    with ProcessLock(path) as mine, ProcessLock(path) as theirs:
        assert mine.acquire()
        assert not theirs.acquire(0.05)
        assert is_held(path)
    code = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert is_held(path)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with ProcessLock(path) as again:
        assert again.acquire(1.0)


def test_a_forked_worker_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    lock = ProcessLock(tmp_path / "lock")
    assert lock.acquire()
    (told, tell), (wait, release) = os.pipe(), os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(tell, b"x")
        os.read(wait, 1)
        os._exit(0)
    os.read(told, 1)
    assert is_held(tmp_path / "lock")
    lock.release()
    held = is_held(tmp_path / "lock")
    os.write(release, b"x")
    os.waitpid(worker, 0)
    for descriptor in (told, tell, wait, release):
        os.close(descriptor)
    assert not held


def test_the_drivers_listing_is_read() -> None:
    assert [(gpu.index, gpu.uuid, round(gpu.memory_gb)) for gpu in read_listing(LISTING)] == [
        (0, "GPU-aaaa", 80),
        (1, "GPU-bbbb", 80),
    ]


@pytest.fixture
def driver(tmp_path: Path) -> dict[str, str]:
    return tool(tmp_path, f"printf '{LISTING}'")


def tool(folder: Path, body: str) -> dict[str, str]:
    """An environment whose nvidia-smi is this shell script."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:/bin:/usr/bin"}


@pytest.mark.parametrize(
    ("variables", "setting", "found"),
    [
        ({}, "auto", ("GPU-aaaa", "GPU-bbbb")),
        ({}, "none", ()),
        ({}, "GPU-bbbb", ("GPU-bbbb",)),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "auto", ("GPU-bbbb",)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aa"}, "auto", ("GPU-aaaa",)),
        ({"CUDA_VISIBLE_DEVICES": ""}, "auto", ()),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "GPU-aaaa", ()),
    ],
)
def test_jobs_get_the_gpus_that_server_and_operator_leave_them(
    driver: dict[str, str], variables: dict[str, str], setting: str, found: tuple[str, ...]
) -> None:
    assert tuple(gpu.uuid for gpu in gpus({**driver, **variables}, setting)) == found


@pytest.mark.parametrize("body", ["echo 'Driver/library version mismatch'; exit 18", "exit 9", "sleep 60"])
def test_a_driver_that_does_not_answer_is_not_taken_for_a_machine_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(devices, "_TIMEOUT_S", 0.5)
    environ = tool(tmp_path, body)
    with pytest.raises(NotReady, match=r"mismatch|ended with 9|took more than 0\.5 s"):
        inventory(environ, "auto", 1)
    warnings, _ = check_gpus({"train": {"num_gpus": 1}}, "train", look(Settings(home=tmp_path), environ), "local")
    assert "M2F_GPUS=none" in warnings[0]
    assert inventory(environ, "none", 1).names == ("cpu:0",)
    assert inventory({**environ, "CUDA_VISIBLE_DEVICES": ""}, "auto", 1).names == ("cpu:0",)


def test_a_driver_without_a_gpu_is_a_machine_without_one(tmp_path: Path) -> None:
    assert inventory(tool(tmp_path, "echo 'No devices were found'; exit 6"), "auto", 1).names == ("cpu:0",)


@pytest.mark.parametrize(
    "said",
    [
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that it is running.",
        "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.",
    ],
)
def test_the_drivers_tool_on_a_machine_without_nvidia_hardware_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(devices, "_SYSTEM", tmp_path)
    environ = tool(tmp_path, f'echo "{said}"; exit 9')
    card = tmp_path / "sys/bus/pci/devices/0000:01:00.0/vendor"
    card.parent.mkdir(parents=True)
    card.write_text("0x8086\n")
    assert inventory(environ, "auto", 1).names == ("cpu:0",)
    assert look(Settings(home=tmp_path), environ).trouble == ""
    card.write_text("0x10de\n")
    with pytest.raises(NotReady, match="does not answer"):
        inventory(environ, "auto", 1)
    card.unlink()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/dxg").touch()
    with pytest.raises(NotReady, match="does not answer"):
        inventory(environ, "auto", 1)


def test_without_a_gpu_there_are_cpu_slots(tmp_path: Path, driver: dict[str, str]) -> None:
    assert inventory({"PATH": str(tmp_path / "empty")}, "auto", 2).names == ("cpu:0", "cpu:1")
    assert inventory(driver, "auto", 2).kind == "gpu"


def test_only_allowed_variables_reach_a_job() -> None:
    environ = {
        **dict.fromkeys(("PATH", "HOME", "LC_ALL", "PYTHONPATH", "CUDA_HOME", "https_proxy"), "yes"),
        "WANDB_API_KEY": "wandb-secret",
        **dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "M2F_ENCRYPTION_KEY", "GITHUB_TOKEN", "NGC_API_KEY"), "no"),
        **dict.fromkeys(("MYPATH", "PATHS"), "no"),
    }
    child = child_environment(environ, devices=("GPU-1", "GPU-2"), cpu_share=None)
    assert "no" not in child.values()
    assert set(environ) - set(child) == {name for name, value in environ.items() if value == "no"}
    assert (child["CUDA_VISIBLE_DEVICES"], child["PYTHONUNBUFFERED"]) == ("GPU-1,GPU-2", "1")
    assert secrets_in(child) == ("wandb-secret",)


def test_jobs_that_share_the_cores_get_their_share_of_threads() -> None:
    cores = os.cpu_count() or 1
    assert child_environment({}, devices=(), cpu_share=2)["OMP_NUM_THREADS"] == str(max(cores // 2, 1))
    assert "OMP_NUM_THREADS" not in child_environment({}, devices=(), cpu_share=1)
    assert child_environment({"OMP_NUM_THREADS": "7"}, devices=(), cpu_share=2)["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}])
def test_threads_of_a_training_on_the_cpu_do_not_spin_long_unless_the_user_says_so(said: dict[str, str]) -> None:
    assert child_environment({}, devices=(), cpu_share=1)["GOMP_SPINCOUNT"] == "10000"
    assert "GOMP_SPINCOUNT" not in child_environment({}, devices=("GPU-1",), cpu_share=None)
    assert said.items() <= (child := child_environment(said, devices=(), cpu_share=1)).items()
    assert len(child.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}) == 1
