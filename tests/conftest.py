"""What tests of several rooms share: a small real data set, a home of its own, a server that clients can start."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from mcp.client.stdio import StdioServerParameters

from mask2former_mcp.demo import scenes

ROOT = Path(__file__).resolve().parents[1]

# The smallest training that still is one: two epochs of three steps on 64-pixel crops.
TINY_OVERRIDES: dict[str, Any] = {
    "dataset.augmentation.train_crop_size": [64, 64],
    "dataset.augmentation.train_min_size": [96],
    "dataset.augmentation.test_min_size": 96,
    "dataset.train.num_workers": 0,
    "dataset.val.num_workers": 0,
    "model.mask_former.num_object_queries": 10,
    "model.mask_former.dec_layers": 2,
}


def pytest_configure(config: pytest.Config) -> None:
    # Several test processes share the cores: with a thread a core each, torch slows all of them many times over.
    # Read when torch is imported, which is later; workers of xdist inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Whoever runs the tests may have an account: no test may find it, nor wait for the metadata service of a cloud.
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    for name in [name for name in os.environ if name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL")]:
        del os.environ[name]
    # On shared cores one example may take long for no fault of its own.
    settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("shared")
    config.addinivalue_line("markers", "slow: takes up to two minutes; part of the whole run all the same")


@pytest.fixture(scope="session")
def belt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training, four validation and two test images of 96 pixels: `train/`, `val/`, `test/images`."""
    return scenes.make(tmp_path_factory.mktemp("data") / "belt", train=12, val=4, test=2, size=96, workers=1)


@pytest.fixture
def tiny_training(belt: Path) -> dict[str, Any]:
    """Arguments of `train` that end in seconds on one core."""
    return {
        "train_dataset": str(belt),
        "preset": "mini",
        "num_epochs": 2,
        "batch_size": 4,
        "overrides": dict(TINY_OVERRIDES),
    }


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose jobs live in this test's folder, on the CPU, with one thread each."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    # A grace of seconds: a cancelled engine has little to save here.
    own = {"M2F_HOME": str(tmp_path / "home"), "M2F_GPUS": "none", "OMP_NUM_THREADS": "1", "M2F_CANCEL_GRACE_S": "10"}
    return {**os.environ, "PYTHONPATH": path, **own}


@pytest.fixture
def stdio(environ: dict[str, str]) -> StdioServerParameters:
    """The server as a client starts it: `python server.py`."""
    return StdioServerParameters(command=sys.executable, args=[str(ROOT / "server.py")], env=environ)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[[str], list[psutil.Process]]]:
    """Finds this test's processes by a part of their command line; kills what is left of them at the end.

    They are told from everybody else's by the home in their environment or, the engine's, in their command line.
    """
    home = str(tmp_path / "home")

    def find(part: str) -> list[psutil.Process]:
        return [process for process in _of_home(home) if part in " ".join(_command(process))]

    yield find
    for process in _of_home(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _of_home(home: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if process.environ().get("M2F_HOME") == home or home in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
