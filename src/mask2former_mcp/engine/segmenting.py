"""Photos through a network and read out; on a GPU both at once."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.engine.photos import Shots
from mask2former_mcp.engine.scoring import Interpret, Outcome


@dataclass(frozen=True, slots=True)
class Segmenter:
    """What inference does with batches of photos.

    model: on `device`; a prediction of it stays as it is when the next one is made.
    """

    model: nn.Module
    interpret: Interpret
    normalize: Normalize
    device: torch.device

    def __call__(self, batches: Iterable[Shots]) -> Iterator[tuple[Shots, list[Outcome]]]:
        """Each batch with one outcome per photo, at its original size.

        A batch is read out when the next one has been given to the network. To read out takes the host many small steps
        that wait for the GPU; in a stream of its own it need not wait for the whole network too.
        """
        beside = torch.cuda.Stream(self.device, priority=-1) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        waiting: tuple[Shots, Any, Any] | None = None
        for shots in batches:
            prediction = self._predict(shots) if shots.indices else None
            ready = torch.cuda.current_stream(self.device).record_event() if beside else None
            if waiting:
                yield waiting[0], self._read_out(*waiting, beside)
            waiting = shots, prediction, ready
        if waiting:
            yield waiting[0], self._read_out(*waiting, beside)

    @torch.inference_mode()
    def _predict(self, shots: Shots) -> Any:
        blank = [(0, 0)] * (len(shots.images) - len(shots.sizes))
        return self.model(self.normalize(shots.images, [*shots.sizes, *blank], self.device))

    @torch.inference_mode()
    def _read_out(self, shots: Shots, prediction: Any, ready: Any, beside: Any) -> list[Outcome]:
        """When this returns, nothing that was started in `beside` is under way: every outcome is on the host."""
        padded = (shots.images.shape[2], shots.images.shape[3])
        place: AbstractContextManager[Any] = nullcontext()
        if beside:
            beside.wait_event(ready)
            place = torch.cuda.stream(beside)
        with place:
            kept = zip(shots.sizes, shots.originals, strict=True)
            return [self.interpret(prediction, i, size, padded, original) for i, (size, original) in enumerate(kept)]
