"""Which of an image's segments the network is to find, and which pixels say nothing, by mode."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.data import Truth


@dataclass(frozen=True)
class TargetRule:
    """Which segments are targets. Semantic: one per class; instance: things only, one each; panoptic: one each."""

    mode: str
    things: frozenset[int]

    def __call__(
        self, truth: Truth, planes: NDArray[np.uint16]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Planes [P, h, w] read from the truth -> labels [T], masks [T, h, w], valid [h, w]. Empty masks drop out."""
        numbers = np.arange(1, len(truth.labels) + 1)
        wanted = ~truth.crowd
        if self.mode == "instance":
            wanted &= np.isin(truth.labels, list(self.things))
        if self.mode == "semantic":
            values = np.concatenate([[0], np.where(wanted, truth.labels, 0)])[planes]
        else:
            values = np.concatenate([[0], np.where(wanted, numbers, 0)])[planes]
        present = np.unique(values)
        present = present[present > 0]
        masks = (values[None] == present[:, None, None, None]).any(1)
        labels = present if self.mode == "semantic" else truth.labels[present - 1]
        return labels.astype(np.int64), masks, self._valid(truth, planes, masks)

    @staticmethod
    def _valid(truth: Truth, planes: NDArray[np.uint16], masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Void is what nobody annotated, where all was to be, and crowds that no single object covers."""
        state = np.concatenate([[0], np.where(truth.crowd, 1, 2)])[planes].max(0)  # 0 nothing, 1 crowd, 2 annotated
        return np.asarray((state == 2) | ((state == 0) & (not truth.exhaustive)))


def rule_for(mode: str, classes: Classes) -> TargetRule:
    return TargetRule(mode, classes.things)
