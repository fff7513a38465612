"""Batch norms that measure the whole batch, when several processes have a share of it each.

On GPUs PyTorch's own SyncBatchNorm does it, which refuses a CPU; there the same statistics travel through all-reduce.
"""

from typing import Any

import torch
from torch import Tensor, nn


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose mean and variance are those of all processes' shares, which are of one shape; gradients too."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = _mean(wide.mean((0, 2, 3)))
        variance = _mean((wide - mean[:, None, None]).square().mean((0, 2, 3)))
        self._remember(mean.detach(), variance.detach(), torch.distributed.get_world_size() * x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        out: Tensor = wide * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
        return out.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Running statistics, as BatchNorm2d keeps them: of the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def synchronise(model: nn.Module, device: torch.device) -> None:
    """Makes the batch norms of a network for this device measure over all processes. Names and weights stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm  # it has no attributes of its own


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each share is part of every process's sum, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


def _mean(own: Tensor) -> Tensor:
    """Over all processes; gradients flow to each of them."""
    total: Tensor = _Sum.apply(own)  # type: ignore[no-untyped-call]
    return total / torch.distributed.get_world_size()
