"""Optimiser, schedule and frozen modules, as detectron2's Mask2Former recipe sets them."""

from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mask2former_mcp.spec.train import Optim

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
TABLES = ("relative_position_bias_table", "absolute_pos_embed")
POWER = 0.9  # of the polynomial decay
WARMUP_SHARE, WARMUP_STEPS, WARMUP_START = 0.05, 1000, 1e-3  # a twentieth of the run, at most 1000 steps


def optimizer(model: nn.Module, settings: Optim) -> AdamW:
    """AdamW in at most four groups: backbone or not, decayed or not.

    Norms, embeddings and position tables are not decayed; the backbone's rate is `backbone_multiplier` times the base.
    Few groups matter: a step costs per group. Raises ValueError when everything is frozen.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                plain = isinstance(module, (*NORMS, nn.Embedding)) or name in TABLES
                in_backbone = module_name.split(".")[0] == "backbone"
                groups.setdefault((in_backbone, plain), []).append(parameter)
    if not groups:
        raise ValueError("train.freeze leaves nothing to train: every parameter is frozen")
    return AdamW(
        [
            {
                "params": parameters,
                "lr": settings.lr * (settings.backbone_multiplier if in_backbone else 1.0),
                "weight_decay": 0.0 if plain else settings.weight_decay,
            }
            for (in_backbone, plain), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=settings.lr,
        fused=True,
    )


def schedule(optimizer: AdamW, settings: Optim, *, steps_per_epoch: int, total_steps: int) -> LambdaLR:
    """A factor on every group's rate, by step. To be stepped after every optimiser step."""
    if settings.lr_scheduler == "MultiStep":
        borders = [epoch * steps_per_epoch for epoch in settings.milestones]
        return LambdaLR(optimizer, multi_step(borders, settings.gamma))
    return LambdaLR(optimizer, warmup_poly(total_steps))


def multi_step(borders: Sequence[int], gamma: float) -> Callable[[int], float]:
    """`gamma` once more from each border on."""
    return lambda step: gamma ** sum(step >= border for border in borders)


def warmup_poly(total_steps: int) -> Callable[[int], float]:
    """Linear from 0.001 to 1 over the warm-up, times (1 - step / total) ^ 0.9; 0 at the last step."""
    warmup = max(1, min(WARMUP_STEPS, round(WARMUP_SHARE * total_steps)))

    def factor(step: int) -> float:
        rise = WARMUP_START + (1 - WARMUP_START) * min(1.0, step / warmup)
        return float(rise * max(0.0, 1 - step / max(1, total_steps)) ** POWER)

    return factor


def freeze(model: nn.Module, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Stops the named modules from learning; returns (frozen, not found)."""
    modules = dict(model.named_modules())
    found = [name for name in names if name in modules]
    for name in found:
        modules[name].requires_grad_(False)
    return found, [name for name in names if name not in modules]
