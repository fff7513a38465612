"""What the processes of one run tell each other while they work. With one process every answer is its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import distributed


@dataclass(frozen=True)
class Group:
    """rank: of this process among `ranks`; device: by which numbers travel. Each call waits for all processes."""

    rank: int = 0
    ranks: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def numbers(self, own: Sequence[float]) -> list[Sequence[float]]:
        """The numbers of each process, by rank; each has equally many."""
        if self.ranks == 1:
            return [own]
        every = torch.zeros(self.ranks, len(own), dtype=torch.float64, device=self.device)
        every[self.rank] = torch.tensor(own, dtype=torch.float64)
        distributed.all_reduce(every)
        found: list[Sequence[float]] = every.tolist()
        return found

    def largest(self, own: int) -> int:
        return int(max(number for (number,) in self.numbers([own])))

    def things(self, own: Any) -> list[Any]:
        """One object of each process, by rank; on the first process only, elsewhere empty."""
        if self.ranks == 1:
            return [own]
        found: list[Any] = [None] * self.ranks if self.rank == 0 else []
        distributed.gather_object(own, found or None)
        return found

    def from_first(self, own: Any) -> Any:
        """The first process's object."""
        if self.ranks == 1:
            return own
        holder = [own]
        distributed.broadcast_object_list(holder)
        return holder[0]

    def meet(self) -> None:
        """Returns when all processes have come here."""
        self.numbers([0.0])


def of(fabric: Fabric) -> Group:
    return Group(fabric.global_rank, fabric.world_size, fabric.device)
