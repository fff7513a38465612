"""DDP by hand: every process has the whole network, and once a step their gradients are averaged in one call.

PyTorch's DDP averages while the backward pass runs, from hooks. That hides the transfer, but a hook does not fire when
a CUDA graph replays the pass, and with static_graph, as we use it, DDP fails where a batch is to be left out.
"""

import torch
from lightning_fabric.strategies import DDPStrategy
from torch import distributed, nn


class Replicated(DDPStrategy):  # type: ignore[misc]  # Fabric is not typed for us
    """Fabric's processes and devices, with the network as it is; whoever trains it calls `average`."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        for value in module.state_dict().values():
            distributed.broadcast(value, 0)
        return module

    def average(self, module: nn.Module) -> None:
        """The gradients become their mean over all processes, which must come here with the same ones."""
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.world_size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])
