"""Several processes of the real command on loopback: what stands for nodes with GPUs."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def small(tiny: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`tiny`, smaller: images of 40 pixels, one a process and step."""
    return lambda **changes: tiny(**{**SMALL, **{key.replace("__", "."): v for key, v in changes.items()}})


@contextmanager
def start(verb: str, folder: Path, spec: dict[str, Any], *more: str, nodes: int, each: int) -> Iterator[Started]:
    """`mask2former verb` once a node, in TAO's environment; ended at the end, whatever happens."""
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "mask2former_mcp.engine", verb, "-e", str(folder / "spec.yaml")]
    port, started = free_port(), []
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


def run(verb: str, folder: Path, spec: dict[str, Any], *more: str, nodes: int = 2, each: int = 2) -> list[int]:
    """The exit codes of the nodes' commands."""
    with start(verb, folder, spec, *more, nodes=nodes, each=each) as started:
        return [process.wait(WAIT_S) for process in started]
