"""Measuring a network on an annotated split: the same code while training and in `evaluate`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from mask2former_mcp.engine.criterion import Criterion
from mask2former_mcp.engine.group import Group
from mask2former_mcp.engine.loader import Batch, Normalize
from mask2former_mcp.engine.score_workers import sharing
from mask2former_mcp.engine.scoring import Interpret, Outcome, Scores


def score(
    model: nn.Module,
    loader: "DataLoader[Batch]",
    scores: Scores,
    interpret: Interpret,
    *,
    normalize: Normalize,
    criterion: Criterion | None,
    device: torch.device,
    after_batch: Callable[[Batch, list[Outcome]], None] = lambda batch, outcomes: None,
    group: Group | None = None,
) -> dict[str, float]:
    """Runs the split through the network and returns the overall metrics. The network is in eval mode meanwhile.

    With workers to load a split that is not tiny, as many others count its metrics.
    criterion: for val_loss, over all layers as in training. after_batch may raise to end early. group: the processes
    that have a share of the split each; `scores` of the first then holds everything, and all get the same metrics.
    """
    group, was_training = group or Group(), model.training
    # Shards that are put together in inference mode could not be trained on afterwards.
    no_gradients = torch.inference_mode() if group.ranks == 1 else torch.no_grad()
    model.eval()
    try:
        with no_gradients, sharing(scores, len(loader.dataset), loader.num_workers) as shared:  # type: ignore[arg-type]
            for batch in loader:
                images = normalize(batch.images, batch.sizes, device)
                prediction = model(images, every_layer=criterion is not None)
                loss = None if criterion is None else float(criterion(prediction, batch.targets(device)).total)
                outcomes = interpret_batch(prediction, batch, interpret)
                for index, truth, outcome in zip(batch.indices, batch.truths, outcomes, strict=True):
                    if truth is not None:
                        shared.add(truth, outcome, index)
                        if loss is not None:
                            scores.losses[index] = loss
                after_batch(batch, outcomes)
    finally:
        model.train(was_training)
    return _over_all(scores, group)


def _over_all(scores: Scores, group: Group) -> dict[str, float]:
    """The metrics of all shares together, taken by the first process: no metric here is a mean over shares."""
    for other in group.things(scores)[1:]:
        scores.merge(other)
    measured: dict[str, float] = group.from_first(scores.results() if group.rank == 0 else None)
    return measured


def interpret_batch(prediction: Any, batch: Batch, interpret: Interpret) -> list[Outcome]:
    """One outcome per image, at the size of its truth."""
    padded = (batch.images.shape[2], batch.images.shape[3])
    sizes = zip(batch.truths, batch.sizes, strict=True)
    return interpret(prediction, batch.sizes, padded, [size if truth is None else truth.size for truth, size in sizes])
