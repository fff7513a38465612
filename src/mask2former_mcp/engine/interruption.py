"""SIGTERM and SIGINT: at once, or, while training, at the next step, so that nothing learned is lost."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

RELAY = signal.SIGUSR1  # SIGTERM or SIGINT, passed on by the process that started this one


class Interrupted(Exception):
    """The process was asked to end. `signal_number` decides the exit code (128 + number)."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class AtOnce(Interrupted):
    """Asked a second time, while the loop was still on its way to a boundary: what it was doing is left half done."""


@dataclass
class Request:
    """What has been asked of a loop that ends at its own next boundary.

    agree: of several processes that train together, the largest number that one of them has. They must all end at the
    same boundary, because each waits for the others in every step. heard: what they agreed on in the last one.
    """

    signal_number: int | None = None
    agree: Callable[[int], int] | None = None
    relayed: bool = False
    heard: int = 0

    def note(self, number: int) -> None:
        """Raises AtOnce for a second request. One that comes both directly and passed on is one."""
        if number == RELAY:
            if self.signal_number is None:
                self.signal_number, self.relayed = signal.SIGTERM, True
        elif self.signal_number is None:
            self.signal_number = number
        elif self.relayed:
            self.relayed = False
        else:
            raise AtOnce(number)

    def obey(self, *, at_step: bool = False) -> None:
        """Raises Interrupted when a signal has come, here or to another process of the run.

        at_step: the processes have told each other in the step that has just ended, and are not asked once more.
        """
        number = self.signal_number or 0
        if self.agree is not None:
            number = self.heard if at_step else self.agree(number)
        if number:
            raise Interrupted(number)


@contextmanager
def immediate() -> Iterator[None]:
    """Inside, a signal raises Interrupted where the program is."""

    def handler(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(signal.SIGTERM if number == RELAY else number)

    with _handling(handler):
        yield


@contextmanager
def deferred() -> Iterator[Request]:
    """Inside, the first signal is only noted; a second one raises AtOnce where the program is."""
    request = Request()

    def handler(number: int, _frame: FrameType | None) -> None:
        request.note(number)

    with _handling(handler):
        yield request


def ignore() -> None:
    """For worker processes: whoever signals the whole process group means their parent, which still needs them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handling(handler: "signal._HANDLER") -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, RELAY)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, previous in zip(numbers, before, strict=True):
            signal.signal(number, previous)
