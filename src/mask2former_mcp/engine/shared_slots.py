"""Memory that this process and those forked from it see, in slots that are used again and again.

What comes in fresh memory each time costs both sides a fault for every page: most of what handing over an image takes.
"""

import contextlib
import mmap
import sys

import numpy as np
import torch


def forks() -> bool:
    """Whether processes for a task are forked from this one, so that they see its memory."""
    return sys.platform == "linux"


def make(count: int, size: int) -> list[memoryview]:
    """`count` slots of `size` bytes for processes that are forked from now on. A page takes memory once it was used.

    An empty list where nothing is forked, or the system has no such memory to give.
    """
    if not forks() or not count * size:
        return []
    try:
        memory = memoryview(mmap.mmap(-1, count * size))
    except OSError:
        return []
    return [memory[start : start + size] for start in range(0, len(memory), size)]


_pinned: list[memoryview] = []  # never given back: a GPU may have been told to copy from them


def pin(slots: list[memoryview]) -> None:
    """Lets a GPU copy from these slots by itself, as long as this process lives. If it cannot, copies take longer."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for slot in slots:
        if int(runtime.cudaHostRegister(np.frombuffer(slot, np.uint8).ctypes.data, len(slot), 0)) != 0:
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device="cuda")  # takes the error, which would be that of the next kernel
            return
        _pinned.append(slot)
