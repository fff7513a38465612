"""Photos through a network and read out; on a GPU both at once."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.engine.photos import AHEAD, Shots
from mask2former_mcp.engine.scoring import Interpret, Outcome


@dataclass(slots=True)
class Segmenter:
    """What inference does with batches of photos.

    model: on `device`; a prediction of it stays as it is when the next one is made.
    """

    model: nn.Module
    interpret: Interpret
    normalize: Normalize
    device: torch.device
    _uploads: torch.cuda.Stream = field(init=False, repr=False, compare=False)  # where there is a GPU

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            self._uploads = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def __call__(self, batches: Iterable[Shots]) -> Iterator[tuple[Shots, list[Outcome]]]:
        """Each batch with one outcome per photo, at its original size."""
        if self.device.type == "cuda":
            yield from self._at_once(batches)
            return
        for shots in batches:
            yield shots, self._read_out(shots, self.predict(shots))

    def _at_once(self, batches: Iterable[Shots]) -> Iterator[tuple[Shots, list[Outcome]]]:
        """A batch is read out when AHEAD more have been given to the network. That takes the host many small steps
        which wait for the GPU; in a stream of their own they need not wait for the whole network too.
        """
        beside = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]

        def read_out(shots: Shots, prediction: Any, ready: torch.cuda.Event) -> tuple[Shots, list[Outcome]]:
            beside.wait_event(ready)
            with torch.cuda.stream(beside):
                outcomes = self._read_out(shots, prediction)
            beside.synchronize()  # the prediction's memory is free for the next one now
            return shots, outcomes

        given: deque[tuple[Shots, Any, torch.cuda.Event]] = deque()
        for shots in batches:
            given.append((shots, self.predict(shots), torch.cuda.current_stream(self.device).record_event()))
            if len(given) > AHEAD:
                yield read_out(*given.popleft())
        while given:
            yield read_out(*given.popleft())

    @torch.inference_mode()
    def predict(self, shots: Shots) -> Any:
        """Of a batch; None where no photo of it could be read."""
        if not shots.indices:
            return None
        return self.model(self._on_device(shots))

    def _on_device(self, shots: Shots) -> Tensor:
        """What the network is given. A GPU has it copied and made while the batch before is segmented."""
        sizes = [*shots.sizes, *[(0, 0)] * (len(shots.images) - len(shots.sizes))]
        if self.device.type != "cuda":
            return self.normalize(shots.images, sizes, self.device)
        here = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._uploads):
            images = self.normalize(shots.images, sizes, self.device)
        here.wait_stream(self._uploads)
        images.record_stream(here)
        return images

    @torch.inference_mode()
    def _read_out(self, shots: Shots, prediction: Any) -> list[Outcome]:
        padded = (shots.images.shape[2], shots.images.shape[3])
        return self.interpret(prediction, shots.sizes, padded, shots.originals) if shots.indices else []
