"""FSDP: every process keeps its share of weights, gradients and optimiser state (torch's `fully_shard`).

Fabric's own FSDP strategy refuses CPUs, and its ModelParallelStrategy brings a second checkpoint format and tensor
parallelism that nobody here asks for. What is left to do is little: cut the network into units that are put together
one at a time, and put everything together for a checkpoint, which is the same file whatever trained it.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from mask2former_mcp.engine.model import efficientvit, pixel_decoder, swin, transformer_decoder

# The transformer decoder is one unit: it reads weights of its layers without calling them.
UNITS = (
    swin.Block, efficientvit.Sequence, pixel_decoder.EncoderLayer, transformer_decoder.MaskedTransformerDecoder,
)  # fmt: skip


class ShardedStrategy(DDPStrategy):  # type: ignore[misc]  # Fabric is not typed for us
    """Fabric's processes and devices, with the network sharded instead of copied. Optimisers are made after that."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        # The criterion never writes into what the network returned.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for unit in reversed(list(module.modules())):  # inner ones first
            if isinstance(unit, UNITS):
                fully_shard(unit, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module


def whole(state: Any, *, keep: bool = True) -> Any:
    """The same nested values with every shard put together, None in its place for those who do not `keep` it.

    All processes must call it, with the same names.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: whole(value, keep=keep) for name, value in state.items()}
    return state


def share_of(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """This process's share of a whole optimiser state: what belongs to a sharded parameter is cut as that is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        **state,
        "state": {
            index: {name: _cut(value, parameters[int(index)]) for name, value in values.items()}
            for index, values in state["state"].items()
        },
    }


def _cut(value: Any, parameter: Tensor) -> Any:
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    # Every process has read the whole value from the file: nothing needs to be sent.
    return distribute_tensor(
        value.to(parameter.device, parameter.dtype), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
