"""Photos through a network and read out; on a GPU both at once."""

from collections.abc import Iterable, Iterator
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
        """Each batch with one outcome per photo, at its original size."""
        if self.device.type == "cuda":
            yield from self._at_once(batches)
            return
        for shots in batches:
            yield shots, self._read_out(shots, self.predict(shots))

    def _at_once(self, batches: Iterable[Shots]) -> Iterator[tuple[Shots, list[Outcome]]]:
        """A batch is read out when the next one has been given to the network. That takes the host many small steps
        which wait for the GPU; in a stream of their own they need not wait for the whole network too.
        """
        beside = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]

        def read_out(shots: Shots, prediction: Any, ready: torch.cuda.Event) -> tuple[Shots, list[Outcome]]:
            beside.wait_event(ready)
            with torch.cuda.stream(beside):
                outcomes = self._read_out(shots, prediction)
            beside.synchronize()  # the prediction's memory is free for the next one now
            return shots, outcomes

        before: tuple[Shots, Any, torch.cuda.Event] | None = None
        for shots in batches:
            now = shots, self.predict(shots), torch.cuda.current_stream(self.device).record_event()
            if before:
                yield read_out(*before)
            before = now
        if before:
            yield read_out(*before)

    @torch.inference_mode()
    def predict(self, shots: Shots) -> Any:
        """Of a batch; None where no photo of it could be read."""
        if not shots.indices:
            return None
        blank = [(0, 0)] * (len(shots.images) - len(shots.sizes))
        return self.model(self.normalize(shots.images, [*shots.sizes, *blank], self.device))

    @torch.inference_mode()
    def _read_out(self, shots: Shots, prediction: Any) -> list[Outcome]:
        padded = (shots.images.shape[2], shots.images.shape[3])
        return self.interpret(prediction, shots.sizes, padded, shots.originals) if shots.indices else []
