"""What was predicted for an image, and the metrics of all images together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mask2former_mcp.engine import postprocess
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.metrics import InstanceAP, PanopticQuality, PerClass, SemanticIoU, combined
from mask2former_mcp.engine.model.network import Prediction
from mask2former_mcp.engine.resample import Resampler, Size, to_original
from mask2former_mcp.spec.model import Model


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was predicted for one image; parts that the mode does not have are None."""

    semantic: NDArray[np.integer[Any]] | None = None
    panoptic: postprocess.Partition | None = None
    instances: postprocess.Instances | None = None


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The spec's thresholds and the mode, applied to a prediction.

    min_score: of instances that are wanted at all; metrics want every one.
    """

    model: Model
    classes: Classes
    min_score: float = 0.0

    def __call__(
        self, prediction: Prediction, kept: Sequence[Size], padded: Size, originals: Sequence[Size]
    ) -> list[Outcome]:
        """The first images of the batch. kept, padded, originals: (height, width) as in `resample`."""
        features = prediction.mask_features
        grid = (features.shape[2], features.shape[3])
        outcomes = []
        for b, sizes in enumerate(zip(kept, originals, strict=True)):
            mask_logits = (prediction.mask_embeddings[-1][b] @ features[b].flatten(1)).float().view(-1, *grid)
            resample = to_original(grid, padded, *sizes, features.device)
            outcomes.append(self._outcome(prediction.class_logits[-1][b].float().cpu(), mask_logits, resample))
        return outcomes

    def _outcome(self, class_logits: Tensor, mask_logits: Tensor, resample: Resampler) -> Outcome:
        semantic = panoptic = instances = None
        if self.model.mode in ("panoptic", "semantic"):
            semantic = postprocess.semantic(class_logits, mask_logits, resample)
        if self.model.mode == "panoptic":
            panoptic = postprocess.panoptic(
                class_logits,
                mask_logits,
                resample,
                things=self.classes.things,
                object_mask_threshold=self.model.object_mask_threshold,
                overlap_threshold=self.model.overlap_threshold,
            )
        if self.model.mode in ("panoptic", "instance"):
            instances = postprocess.instances(
                class_logits,
                mask_logits,
                resample,
                topk=self.model.test_topk_per_image,
                things=self.classes.things,
                min_score=self.min_score,
            )
        return Outcome(semantic, panoptic, instances)


class Interpret(Protocol):
    """What a model returned for a batch -> an outcome for each of its first images; `Interpreter` for a network."""

    def __call__(
        self, prediction: Any, kept: Sequence[Size], padded: Size, originals: Sequence[Size]
    ) -> list[Outcome]: ...


@runtime_checkable
class InterpretInSteps(Interpret, Protocol):
    """One that can give a GPU its part of the work and do its own, which waits for that, later."""

    def begin(
        self, prediction: Any, kept: Sequence[Size], padded: Size, originals: Sequence[Size]
    ) -> Callable[[], list[Outcome]]: ...


@dataclass
class Scores:
    """What mode and data allow: mIoU but for instances, PQ for panoptic data in panoptic mode, AP where there are
    things.

    In instance mode most pixels are nobody's target, and a map of classes, which names one for every pixel, is no
    answer to that task: over the few annotated pixels mIoU can be 1 with no object found. It is not taken there.
    """

    mode: str
    format: str
    classes: Classes
    losses: dict[int, float] = field(default_factory=dict)  # by the image's number in the split
    images: int = 0

    def __post_init__(self) -> None:
        known_things = self.classes.things & set(self.classes.known)
        self._semantic = None if self.mode == "instance" else SemanticIoU(len(self.classes))
        whole = self.mode == "panoptic" and self.format == "coco_panoptic"
        self._panoptic = PanopticQuality(len(self.classes), self.classes.things) if whole else None
        single = self.mode in ("panoptic", "instance") and self.format in ("coco", "coco_panoptic") and known_things
        self._instances = InstanceAP(known_things) if single else None

    def blank(self) -> "Scores":
        """The same without any image."""
        return Scores(self.mode, self.format, self.classes)

    def add(self, truth: Truth, outcome: Outcome, index: int | None = None) -> None:
        """One image; index: its number in the split, where others measure the rest or they come in another order."""
        self.images += 1
        if self._semantic is not None and outcome.semantic is not None:
            self._semantic.add(truth.class_map(), outcome.semantic)
        if self._panoptic is not None and outcome.panoptic is not None:
            self._panoptic.add(truth, outcome.panoptic)
        if self._instances is not None and outcome.instances is not None:
            self._instances.add(truth, outcome.instances, index)

    def merge(self, other: "Scores") -> None:
        """Takes over what another process has measured, of other images with the same mode and classes."""
        self.images += other.images
        self.losses.update(other.losses)
        if self._semantic is not None and other._semantic is not None:
            self._semantic.merge(other._semantic)
        if self._panoptic is not None and other._panoptic is not None:
            self._panoptic.merge(other._panoptic)
        if self._instances is not None and other._instances is not None:
            self._instances.merge(other._instances)

    def results(self) -> dict[str, float]:
        """Overall metrics; those that could not be measured are left out."""
        losses = [self.losses[image] for image in sorted(self.losses)]
        found = {"val_loss": sum(losses) / len(losses) if losses else math.nan}
        for part in (self._semantic, self._panoptic, self._instances):
            if part is not None:
                found.update(part.results())
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def per_class(self) -> PerClass:
        return combined(*(p.per_class() for p in (self._semantic, self._panoptic, self._instances) if p is not None))
