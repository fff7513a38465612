"""What would have fitted into memory, measured on one image of a batch that did not."""

import math
import resource
from dataclasses import replace

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mask2former_mcp.engine.batch_norm import SharedBatchNorm
from mask2former_mcp.engine.loader import Batch
from mask2former_mcp.engine.out_of_memory import ran_out
from mask2former_mcp.engine.run import Run

GIB = 2**30
WAITING = (FSDPModule, SharedBatchNorm, nn.SyncBatchNorm)  # for other processes, in their forward pass


def what_fits(work: Run, batch: Batch) -> str:
    """A sentence with the batch size that would fit. To be called when nothing holds the failed step's tensors.

    Weights, gradients and optimiser stay as they are, and no other process is waited for.
    """
    if any(isinstance(module, WAITING) for module in work.model.module.modules()):
        return "What would fit is not measured where processes share shards or batch norms."
    work.optimizer.zero_grad(set_to_none=True)
    height, width = batch.images.shape[2:]
    try:
        each, room = _measured(work, _first(batch))
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return f"Not even a step on one image of {width} x {height} fits beside the weights."
    fitting = min(int(room // max(each, 1)), len(batch.names) - 1)
    told = (
        f"Measured: a step on one image of {width} x {height} takes {each / GIB:.2f} GiB, {room / GIB:.2f} GiB are free"
    )
    if fitting < 1:
        return f"{told}: one image hardly fits."
    times = math.ceil(len(batch.names) / fitting) * work.spec.train.accumulate_grad_batches
    return (
        f"{told}: dataset.train.batch_size={fitting} would fit, and with train.accumulate_grad_batches={times} a step"
        " still learns from no fewer images."
    )


def _measured(work: Run, batch: Batch) -> tuple[float, float]:
    """Bytes that one image takes in a step, and bytes that there are for all images."""
    at = work.fabric.device
    gradients = sum(p.numel() * p.element_size() for p in work.model.parameters() if p.requires_grad)
    still = gradients * (1 if work.plain_optimizer.state else 3)  # AdamW's two moments come with its first step
    if at.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(at)
        before = torch.cuda.memory_allocated(at)
        _step(work, batch)
        each = torch.cuda.max_memory_allocated(at) - before - gradients
        torch.cuda.empty_cache()
        return max(each, 0), torch.cuda.mem_get_info(at)[0] - still
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in work.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _step(work, batch)
    return sum(size for place, size in kept.items() if place not in own), _free() - still


def _step(work: Run, batch: Batch) -> None:
    """Forward and backward past what several processes do together: DDP's wrapper, and the hooks on its gradients."""
    at, alone = work.fabric.device, replace(work.criterion, together=False)
    with work.fabric.autocast():
        prediction = work.model.module(work.normalize(batch.images, batch.sizes, at), every_layer=True)
    learning = [parameter for parameter in work.model.parameters() if parameter.requires_grad]
    torch.autograd.grad(alone(prediction, batch.targets(at)).total, learning, allow_unused=True)


def _first(batch: Batch) -> Batch:
    count = batch.counts[0]
    return replace(
        batch,
        images=batch.images[:1],
        labels=batch.labels[:count],
        masks=batch.masks[:count],
        counts=[count],
        valid=batch.valid[:1],
        sizes=batch.sizes[:1],
        names=batch.names[:1],
        truths=batch.truths[:1],
    )


def _free() -> int:
    """Bytes of main memory that this process may still take."""
    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else min(free, limit - psutil.Process().memory_info().vms)
