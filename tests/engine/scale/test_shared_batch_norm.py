"""Batch norm over two processes on CPUs is batch norm of the whole batch."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.engine import checkpoint

Make, Run = Callable[..., dict[str, Any]], Callable[..., Any]
WAIT_S = 60
NORMED = {
    "model.backbone.type": "efficientvit",
    "model.backbone.efficientvit.name": "b0",
    "train.num_epochs": 1,
}
PROGRAM = """
import sys
import torch
from torch import distributed, nn
from mask2former_mcp.engine import batch_norm

rank, port = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
torch.manual_seed(0)
x, target = torch.randn(4, 3, 5, 6, dtype=torch.float64) * 3 + 7, torch.randn(4, 3, 5, 6, dtype=torch.float64)
plain = nn.BatchNorm2d(3, dtype=torch.float64)
nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
shared = nn.Sequential(nn.BatchNorm2d(3, dtype=torch.float64))
shared[0].load_state_dict(plain.state_dict())
batch_norm.synchronise(shared, torch.device("cpu"))
assert type(shared[0]) is batch_norm.SharedBatchNorm
mine = slice(2 * rank, 2 * rank + 2)
whole, part = x.clone().requires_grad_(), x[mine].clone().requires_grad_()
((plain(whole) - target) ** 2).mean().backward()
out = shared(part)
((out - target[mine]) ** 2).mean().backward()
for parameter in shared.parameters():  # as DDP does
    distributed.all_reduce(parameter.grad)
    parameter.grad /= 2
close = torch.testing.assert_close
close(out, plain(x)[mine])
close(part.grad / 2, whole.grad[mine])
close(shared[0].weight.grad, plain.weight.grad)
close(shared[0].bias.grad, plain.bias.grad)
plain(x)  # once more above: the running means have seen the batch two and three times
shared(x[mine]), shared(x[mine])
close(shared[0].running_mean, plain.running_mean)
close(shared[0].running_var, plain.running_var)
assert int(shared[0].num_batches_tracked) == int(plain.num_batches_tracked) == 3
close(shared.eval()(x), plain.eval()(x))
distributed.barrier()
distributed.destroy_process_group()  # its threads must not outlive the interpreter
"""


def test_statistics_and_gradients_are_those_of_the_whole_batch() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(port)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        ended = [(process.communicate(timeout=WAIT_S)[1], process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [code for _, code in ended] == [0, 0], ended[0][0] + ended[1][0]


@pytest.fixture(scope="module")
def one(small: Make, alone: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of one process, batch 4, with a backbone of batch norms."""
    folder = tmp_path_factory.mktemp("one")
    assert alone("train", folder, small(**NORMED, dataset__train__batch_size=4)) == 0
    return checkpoint.load(folder / "train" / checkpoint.LATEST)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_backbone_with_batch_norms_trains_as_in_one_process(
    recompute: bool, small: Make, together: Run, same_training: Run, one: dict[str, Any], tmp_path: Path
) -> None:
    spec = small(**NORMED, dataset__train__batch_size=2, train__activation_checkpoint=recompute)
    assert together("train", tmp_path, spec, nodes=1) == [0], (tmp_path / "node0.log").read_text()
    shared = checkpoint.load(tmp_path / "train" / checkpoint.LATEST)
    counted = [name for name in one["state_dict"] if name.endswith("num_batches_tracked")]
    assert counted
    assert all(int(shared["state_dict"][name]) == 2 for name in counted)
    same_training(one, shared)
