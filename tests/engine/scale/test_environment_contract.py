"""TAO's environment: WORLD_SIZE counts nodes, and wins over the spec."""

from typing import Any

import pytest

from mask2former_mcp.engine import processes
from mask2former_mcp.engine.processes import Processes
from mask2former_mcp.spec.experiment import load

NODES = {"WORLD_SIZE": "2", "NUM_GPU_PER_NODE": "4", "NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}


def read(environ: dict[str, str], action: str = "train", **block: Any) -> tuple[dict[str, Any], Processes]:
    needed = {} if action == "train" else {"checkpoint": "x.pth"}
    needed |= {"onnx_file": "x.onnx"} if action == "export" else {}
    mapping = processes.from_environment(action, {action: {**needed, **block}}, environ)
    return mapping[action], processes.of(action, load(action, mapping), environ)


def test_the_environment_wins_over_the_spec() -> None:
    block, found = read(NODES, num_gpus=1, num_nodes=1, gpu_ids=[3])
    assert block == {"num_nodes": 2, "num_gpus": 4, "gpu_ids": [0, 1, 2, 3]}
    assert found == Processes(2, 4, 1, "first", 1234)
    assert found.total == 8


def test_without_it_the_spec_counts() -> None:
    block, found = read({}, num_gpus=2, gpu_ids=[1, 3])
    assert block["gpu_ids"] == [1, 3]
    assert found == Processes(each=2)
    assert read({})[1] == Processes()


def test_rank_stands_for_the_node_where_node_rank_is_missing() -> None:
    environ = {"WORLD_SIZE": "3", "NUM_GPU_PER_NODE": "1", "RANK": "2"}
    assert read(environ)[1] == Processes(3, 1, 2, "localhost", 29500)


def test_every_gpu_of_a_node_where_their_number_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert read({"WORLD_SIZE": "1"})[1] == Processes(each=8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert read({"WORLD_SIZE": "1"}, num_gpus=4)[1] == Processes()


def test_evaluation_shares_the_work_and_other_verbs_do_not() -> None:
    assert read(NODES, "evaluate")[1].total == 8
    assert read(NODES, "inference")[1] == Processes(2, 1, 1, "first", 1234)  # nothing to do there
    assert read(NODES, "export")[1] == Processes(2, 1, 1, "first", 1234)
    assert read({}, "export")[1] == Processes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two'"),
        ({"NUM_GPU_PER_NODE": "0"}, "NUM_GPU_PER_NODE = '0' .* at least 1"),
        ({"NODE_RANK": "2"}, "NODE_RANK = 2 with 2 nodes: must be below 2"),
        ({"NODE_RANK": "-1"}, "NODE_RANK = '-1'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT = 'http'"),
        ({"LOCAL_RANK": "0"}, "torchrun"),
    ],
)
def test_a_wrong_environment_is_named(change: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read({**NODES, **change})


def test_a_node_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NODE_RANK is not set"):
        read({}, num_nodes=2)


def test_only_the_first_process_of_the_first_node_writes() -> None:
    assert processes.is_first({})
    assert processes.is_first({"WORLD_SIZE": "2", "NODE_RANK": "0", "LOCAL_RANK": "0"})
    assert not processes.is_first({"WORLD_SIZE": "2", "NODE_RANK": "1"})
    assert not processes.is_first({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"})
    assert not processes.is_first({"LOCAL_RANK": "1"})
    assert processes.is_first({"WORLD_SIZE": "1", "NODE_RANK": "1"})  # left over from something else
