"""An exported network in use: a graph of fixed image size that an inference library runs, read out like a prediction.

Images are scaled to fit into the graph's size, padded right and below as everywhere else, and everything is read out at
the size of the original image. What a graph does not say is completed by one rule: `panoptic` tells of each query only
its best class, so the rest of its probability is spread evenly over the other classes; the partition is then the
network's own, while mIoU and AP may differ by a little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from mask2former_mcp.engine import postprocess
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.resample import Resampler, Size, to_original
from mask2former_mcp.engine.scoring import Outcome
from mask2former_mcp.spec.model import Model

OUTPUTS = {
    "semantic": ("pred_masks",),
    "instance": ("pred_masks", "pred_scores", "pred_classes"),
    "panoptic": ("prob_masks", "pred_masks", "pred_scores", "pred_classes"),
}
"""The outputs of an export, by mode, in order: TAO's names."""
_LEAST = 1e-7  # a probability of 0 or 1 in float32 stands for a logit of about 16


class Runner(Protocol):
    """A loaded graph. size: (height, width) of its input; batch: (smallest, largest), largest None for any."""

    size: tuple[int, int]
    batch: tuple[int, int | None]
    outputs: tuple[str, ...]

    def run(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        """images [N, 3, H, W], N within `batch` -> each output, batch first."""
        ...


class Graph(nn.Module):
    """A runner where a network is expected: any batch size, tensors in and out."""

    def __init__(self, runner: Runner, mode: str) -> None:
        super().__init__()
        self.runner, self.mode = runner, mode

    def forward(self, images: Tensor, *, every_layer: bool | None = None) -> dict[str, Tensor]:
        """images [B, 3, H, W] of the graph's size. every_layer: a graph has one prediction only."""
        least, most = self.runner.batch
        parts = []
        for some in torch.split(images, most or len(images)):
            missing = max(0, least - len(some))  # a graph of fixed batch size: blank images fill it up
            filled = torch.cat([some, some.new_zeros(missing, *some.shape[1:])]) if missing else some
            found = self.runner.run(np.ascontiguousarray(filled.float().cpu().numpy()))
            parts.append({name: torch.from_numpy(np.array(value[: len(some)])) for name, value in found.items()})
        return {name: torch.cat([part[name] for part in parts]).to(images.device) for name in self.runner.outputs}


def mode_of(outputs: tuple[str, ...], file: str) -> str:
    """Raises ValueError when these are not the outputs of an export."""
    for mode, names in OUTPUTS.items():
        if set(outputs) == set(names):
            return mode
    raise ValueError(
        f"{file} has the outputs {', '.join(outputs)}: this is no Mask2Former export (semantic: pred_masks; instance:"
        " and pred_scores, pred_classes; panoptic: and prob_masks). Export the checkpoint again with `export`."
    )


@dataclass(frozen=True, slots=True)
class GraphInterpreter:
    """`scoring.Interpreter` for what a graph returns."""

    model: Model
    classes: Classes
    min_score: float = 0.0

    def __call__(
        self, prediction: Mapping[str, Tensor], kept: Sequence[Size], padded: Size, originals: Sequence[Size]
    ) -> list[Outcome]:
        """The first images of the batch. kept, padded, originals: (height, width) as in `resample`."""
        outcomes = []
        for b, sizes in enumerate(zip(kept, originals, strict=True)):
            one = {name: value[b] for name, value in prediction.items()}
            outcomes.append(self._outcome(one, to_original(padded, padded, *sizes, one["pred_masks"].device)))
        return outcomes

    def _outcome(self, one: Mapping[str, Tensor], resample: Resampler) -> Outcome:
        if self.model.mode == "semantic":
            return Outcome(_largest(one["pred_masks"], resample))
        if self.model.mode == "instance":
            return _instances(one, resample, self.classes)
        class_logits = _class_logits(one["pred_scores"].cpu(), one["pred_classes"].cpu(), len(self.classes))
        mask_logits = one["pred_masks"].float().clamp(_LEAST, 1 - _LEAST).logit()
        things = self.classes.things
        return Outcome(
            postprocess.semantic(class_logits, mask_logits, resample),
            postprocess.panoptic(
                class_logits,
                mask_logits,
                resample,
                things=things,
                object_mask_threshold=self.model.object_mask_threshold,
                overlap_threshold=self.model.overlap_threshold,
            ),
            postprocess.instances(
                class_logits,
                mask_logits,
                resample,
                topk=self.model.test_topk_per_image,
                things=things,
                min_score=self.min_score,
            ),
        )


def _class_logits(scores: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """[Q] best probabilities and their classes -> [Q, C + 1] logarithms of a whole distribution."""
    scores = scores.float().clamp(_LEAST, 1 - _LEAST)
    rest = (1 - scores) / num_classes
    logits = rest.log()[:, None].repeat(1, num_classes + 1)
    return logits.scatter(1, classes.long()[:, None], scores.log()[:, None])


def _largest(scores: Tensor, resample: Resampler) -> NDArray[np.int32]:
    """[C, H, W] scores -> classes 1..C at the original size, a few rows at once."""
    stripes = postprocess.stripes(resample, len(scores))
    found = [resample(scores.float(), start, stop).max(0).indices + 1 for start, stop in stripes]
    return torch.cat(found).to(torch.int32).cpu().numpy()


def _instances(one: Mapping[str, Tensor], resample: Resampler, classes: Classes) -> Outcome:
    """Masks of 0 and 1 [K, H, W], resized and cut at one half."""
    order = one["pred_scores"].argsort(descending=True, stable=True)
    things = torch.tensor(sorted(classes.things), device=order.device)
    order = order[torch.isin(one["pred_classes"][order].long(), things)]
    masks = []
    for k in order.tolist():
        inside = resample.transposed(one["pred_masks"][k : k + 1].float())[0] > 0.5  # [W, H]
        masks.append(coco_mask.encode(np.asfortranarray(inside.T.cpu().numpy().astype(np.uint8))))
    return Outcome(
        instances=postprocess.Instances(
            one["pred_classes"][order].long().cpu().numpy(),
            one["pred_scores"][order].double().cpu().numpy(),
            tuple(masks),
        ),
    )
