"""Batches of photos come out of the segmenter as they went in, each with the outcomes of its own photos."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.engine.photos import AHEAD, Shots, Unreadable
from mask2former_mcp.engine.scoring import Outcome
from mask2former_mcp.engine.segmenting import Segmenter

CPU = torch.device("cpu")


class Brightest(nn.Module):
    """Stands for a network: the largest value of each image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.amax((1, 2, 3))


def interpret(prediction: Any, kept: Any, padded: Any, originals: Any) -> list[Outcome]:
    return [Outcome(np.full(size, int(value))) for size, value in zip(originals, prediction, strict=False)]


def shots(*indices: int, blank: int = 0) -> Shots:
    images = torch.zeros(len(indices) + blank, 3, 4, 6, dtype=torch.uint8)
    for place, index in enumerate(indices):
        images[place] = index
    unreadable = [] if indices else [Unreadable(9, "torn")]
    return Shots(
        images, list(indices), [(4, 6)] * len(indices), [(8, 12)] * len(indices), [None] * len(indices), unreadable
    )


def test_every_batch_comes_out_in_order_with_its_own_outcomes() -> None:
    segmenter = Segmenter(Brightest(), interpret, Normalize([0.0] * 3, [1 / 255] * 3), CPU)
    batches = [shots(1, 2), shots(), shots(3, blank=1), shots(4, 5)]
    found = list(segmenter(batches))
    assert [one for one, _ in found] == batches
    assert [[int(o.semantic.max()) for o in outcomes] for _, outcomes in found] == [[1, 2], [], [3], [4, 5]]
    assert found[0][1][0].semantic.shape == (8, 12)


def test_no_batch_is_no_outcome() -> None:
    assert not list(Segmenter(Brightest(), interpret, Normalize([0.0] * 3, [1.0] * 3), CPU)([]))


class Streams:
    """Stand for CUDA's where there is no GPU: all is done at once, and told in order."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.made: list[Stream] = []
        self.current = Stream(self)

    def new(self, *_: Any, **__: Any) -> "Stream":
        self.made.append(Stream(self))
        return self.made[-1]

    @contextlib.contextmanager
    def use(self, stream: "Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class Stream:
    def __init__(self, all_: Streams) -> None:
        self.all = all_

    def wait_stream(self, other: "Stream") -> None:
        self.all.told.append(("waits", self, other))

    def synchronize(self) -> None:
        self.all.told.append(("done", self))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    streams = Streams()
    monkeypatch.setattr(torch.cuda, "Stream", streams.new)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams.current)
    monkeypatch.setattr(torch.cuda, "stream", streams.use)
    return streams


def test_on_a_gpu_the_next_network_is_given_its_batch_before_the_host_decides_about_the_last(streams: Streams) -> None:
    told, main = streams.told, streams.current

    class Network(Brightest):
        def forward(self, images: Tensor) -> Tensor:
            told.append(("network", int(images.max()), streams.current))
            return super().forward(images)

    class Interpreter:
        def __call__(self, *batch: Any) -> list[Outcome]:
            return self.begin(*batch)()

        def begin(self, *batch: Any) -> Callable[[], list[Outcome]]:
            number = int(batch[0].max())
            told.append(("begun", number, streams.current))

            def finish() -> list[Outcome]:
                told.append(("finished", number, streams.current))
                return interpret(*batch)

            return finish

    segmenter = Segmenter(Network(), Interpreter(), Normalize([0.0] * 3, [1 / 255] * 3), CPU)
    numbers = range(1, 6)
    found = [int(outcomes[0].semantic.max()) for _, outcomes in segmenter._at_once(shots(n) for n in numbers)]
    assert found == [*numbers]
    own = [streams.made[n % (AHEAD + 1)] for n in range(len(numbers))]
    assert len(set(own[: AHEAD + 1])) == AHEAD + 1 >= 2  # the next batch's stream is another one
    wanted: list[tuple[Any, ...]] = []
    for place in range(len(numbers) + AHEAD):
        if place < len(numbers):
            number = numbers[place]
            wanted += [("network", number, main), ("waits", own[place], main), ("begun", number, own[place])]
        if place >= AHEAD:
            last = place - AHEAD
            wanted += [("finished", numbers[last], own[last]), ("done", own[last])]
    assert told == wanted


@pytest.mark.usefixtures("streams")
def test_on_a_gpu_what_fails_while_a_batch_is_read_out_is_told_and_no_more_is_asked_for() -> None:
    asked = []

    def batches() -> Iterator[Shots]:
        for index in range(1, 9):
            asked.append(index)
            yield shots(index)

    def torn(prediction: Any, kept: Any, padded: Any, originals: Any) -> list[Outcome]:
        if int(prediction[0]) == 3:
            raise RuntimeError("out of memory")
        return interpret(prediction, kept, padded, originals)

    segmenter, read = Segmenter(Brightest(), torn, Normalize([0.0] * 3, [1 / 255] * 3), CPU), []
    with pytest.raises(RuntimeError, match="out of memory"):
        read.extend(one.indices for one, _ in segmenter._at_once(batches()))
    assert read == [[1], [2]]
    assert asked[-1] == 3 + AHEAD


@pytest.mark.usefixtures("streams")
def test_on_a_gpu_a_batch_is_read_out_before_its_memory_is_needed_again() -> None:
    given, asked, read = [shots(1, 2), shots(), shots(3, blank=1), shots(4, 5), shots(6)], 0, 0

    def batches() -> Iterator[Shots]:
        nonlocal asked
        for number, one in enumerate(given):
            assert read >= number - AHEAD, "its images' memory is the next one's"
            asked += 1
            yield one

    segmenter = Segmenter(Brightest(), interpret, Normalize([0.0] * 3, [1 / 255] * 3), CPU)
    values = []
    for one, outcomes in segmenter._at_once(batches()):
        assert one is given[read]
        read += 1
        assert asked == min(len(given), read + AHEAD)
        values.append([int(o.semantic.max()) for o in outcomes])
    assert values == [[1, 2], [], [3], [4, 5], [6]]
