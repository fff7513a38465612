"""Photos through a network and read out; on a GPU both at once."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.engine.photos import AHEAD, Shots
from mask2former_mcp.engine.scoring import Interpret, InterpretInSteps, Outcome

Finish = Callable[[], list[Outcome]]


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
            yield shots, self._begin(shots, self.predict(shots))()

    def _at_once(self, batches: Iterable[Shots]) -> Iterator[tuple[Shots, list[Outcome]]]:
        """A batch is read out when AHEAD more have been given to the network. The GPU's part is queued at once, behind
        the batch's own network, so that it is done when the host decides; in a stream of its own, nothing of it waits
        for the network of the next one.
        """
        streams = [torch.cuda.Stream(self.device, priority=-1) for _ in range(AHEAD + 1)]  # type: ignore[no-untyped-call]
        given: deque[tuple[Shots, Finish, torch.cuda.Stream]] = deque()

        def finished() -> tuple[Shots, list[Outcome]]:
            shots, finish, beside = given.popleft()
            with torch.cuda.stream(beside):
                outcomes = finish()
            beside.synchronize()  # the prediction's memory is free for the next one now
            return shots, outcomes

        for beside, shots in zip(itertools.cycle(streams), batches, strict=False):
            prediction = self.predict(shots)
            beside.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(beside):
                given.append((shots, self._begin(shots, prediction), beside))
            del prediction  # `finish` has it, as long as it is needed
            if len(given) > AHEAD:
                yield finished()
        while given:
            yield finished()

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
    def _begin(self, shots: Shots, prediction: Any) -> Finish:
        """What a GPU can do without the host; the rest is left to what is returned."""
        if not shots.indices:
            return list
        padded = (shots.images.shape[2], shots.images.shape[3])
        whole = prediction, shots.sizes, padded, shots.originals
        interpret = self.interpret
        finish = interpret.begin(*whole) if isinstance(interpret, InterpretInSteps) else partial(interpret, *whole)
        return torch.inference_mode()(finish)
