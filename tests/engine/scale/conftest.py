"""Several processes of the real command on loopback: what stands for nodes with GPUs."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mask2former_mcp.engine import session

WAIT_S = 150  # a run takes some ten seconds on two free cores
SMALL = {
    "dataset.augmentation.train_min_size": [48],
    "dataset.augmentation.train_crop_size": [40, 40],
    "dataset.augmentation.test_min_size": 40,
    "dataset.augmentation.test_max_size": 40,
    "dataset.train.batch_size": 1,
    "model.backbone.swin.drop_path_rate": 0.0,  # drawn per process: no two layouts of processes would agree
    "model.sem_seg_head.num_classes": 3,
    "train.num_epochs": 2,
}
Started = list["subprocess.Popen[bytes]"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def small(tiny: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`tiny`, smaller: images of 40 pixels, one a process and step."""
    return lambda **changes: tiny(**{**SMALL, **{key.replace("__", "."): v for key, v in changes.items()}})


@contextmanager
def _start(verb: str, folder: Path, spec: dict[str, Any], *more: str, nodes: int, each: int) -> Iterator[Started]:
    """`mask2former verb` once a node, in TAO's environment; ended at the end, whatever happens."""
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "mask2former_mcp.engine", verb, "-e", str(folder / "spec.yaml")]
    port, started = _free_port(), []
    try:
        for node in range(nodes):
            environment = {
                **os.environ, "WORLD_SIZE": str(nodes), "NUM_GPU_PER_NODE": str(each), "NODE_RANK": str(node),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            log = (folder / f"node{node}.log").open("wb")
            arguments = [*command, f"results_dir={folder}", *more]
            started.append(subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT))
            log.close()
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def _run(verb: str, folder: Path, spec: dict[str, Any], *more: str, nodes: int = 2, each: int = 2) -> list[int]:
    """The exit codes of the nodes' commands."""
    with _start(verb, folder, spec, *more, nodes=nodes, each=each) as started:
        return [process.wait(WAIT_S) for process in started]


@pytest.fixture(scope="session")
def started() -> Callable[..., AbstractContextManager[Started]]:
    """Starts a verb on nodes."""
    return _start


@pytest.fixture(scope="session")
def together() -> Callable[..., list[int]]:
    """Runs a verb on nodes, 2 with 2 processes each if not told otherwise."""
    return _run


@pytest.fixture(scope="session")
def alone() -> Callable[..., int]:
    """Runs a verb in this process."""

    def run(verb: str, folder: Path, spec: dict[str, Any], *more: str) -> int:
        folder.mkdir(exist_ok=True)
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
        return session.run(verb, folder / "spec.yaml", [f"results_dir={folder}", *more])

    return run


@pytest.fixture(scope="session")
def same_training() -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Asserts that two checkpoints are the same up to the order of sums.

    Gradients are compared by AdamW's running means of them: they were clipped to one norm, so an error of scale shows
    in the losses and one of direction here. Weights say less: a step is as long for a wrong gradient.
    """

    def check(one: dict[str, Any], other: dict[str, Any]) -> None:
        for name in ("exp_avg", "exp_avg_sq"):
            a, b = (
                torch.cat([state[name].flatten() for state in of["optimizer_states"][0]["state"].values()])
                for of in (one, other)
            )
            assert float((a - b).norm() / a.norm()) < 2e-4
        for name, value in one["state_dict"].items():
            torch.testing.assert_close(other["state_dict"][name], value, rtol=0, atol=3e-4)

    return check
