"""Of several processes one runs out of memory: it measures what would have fitted while the others wait for it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from mask2former_mcp.engine import launch, memory, train
from mask2former_mcp.engine.launch import RunFailed
from mask2former_mcp.engine.processes import Processes
from mask2former_mcp.engine.rank import Channel
from mask2former_mcp.engine.run import prepare
from mask2former_mcp.spec.experiment import load

Make = Callable[..., dict[str, Any]]


def main(spec: Path, folder: Path) -> None:
    """One of two processes; the second fails in the middle of the backward pass of its second step."""
    work = prepare(load("train", yaml.safe_load(spec.read_text())), folder)
    channel = Channel(os.environ)
    work.model.train()
    shares = train._shares(work)
    train.step(work, None, next(shares))

    def fails(gradient: Tensor) -> None:
        hook.remove()
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if work.group.rank == 1:
        hook = work.model.module.backbone.register_forward_hook(lambda *call: call[2][0].register_hook(fails) and None)
        memory._free = lambda: 1 << 33
    try:
        train.step(work, None, next(shares))
    except MemoryError as error:
        channel.failure(str(error))
        channel.leave(1)
    work.group.meet()  # as the loss would be told: it waits for the other process


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, r"Measured: a step on one image .*: dataset.train.batch_size=3 would fit, and"),
        ({"train.distributed_strategy": "fsdp"}, "What would fit is not measured where processes share shards"),
        (
            {"model.backbone.type": "efficientvit"},
            "What would fit is not measured where processes share .* batch norms",
        ),
    ],
    ids=["ddp", "fsdp", "batch norms"],
)
def test_it_tells_what_would_have_fitted(changes: dict[str, Any], told: str, small: Make, tmp_path: Path) -> None:
    spec = small(**changes, dataset__train__batch_size=4, train__num_gpus=2, train__gpu_ids=[0, 1])
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, __file__, str(tmp_path / "spec.yaml"), str(tmp_path)]
    with pytest.raises(
        RunFailed, match=rf"^CUDA out of memory. Tried to allocate 2.00 GiB. {told}.*\(process 2 of 2\)$"
    ):
        launch.run(Processes(each=2), command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
