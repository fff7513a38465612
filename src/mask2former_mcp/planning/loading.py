"""How many loader processes a job on GPUs gets. One, the spec's default, makes about 50 images a second ready
(benchmarks/data), and a GPU trains several times as many."""

from mask2former_mcp.planning.rules import Situation
from mask2former_mcp.spec import dotted

_MOST = 12  # enough for the fastest training that was measured (benchmarks/engine)
KEYS = tuple(f"dataset.{split}.num_workers" for split in ("train", "val", "test"))
_OPENED = {"train": ("train", "val"), "evaluate": ("val",), "inference": ("test",), "quantize": ("val",)}


def workers(s: Situation, warnings: list[str]) -> dict[str, int]:
    """`dataset.<split>.num_workers` of the splits that our engine opens, where nobody chose a number.

    A core is left to each process that trains. Without a GPU the loader would only take cores from the network.
    """
    if s.runtime != "engine" or not s.machine.gpus:
        return {}
    count = min(_MOST, max(1, s.machine.cpus // s.machine.gpus - 1))
    keys = [f"dataset.{split}.num_workers" for split in _OPENED.get(s.action, ())]
    values = {key: count for key in keys if key not in s.said and dotted.get(s.spec, key) < count}
    if values:
        warnings.append(
            f"{' and '.join(values)} set to {count}: {s.machine.cpus} cores for {s.machine.gpus} GPU(s); one loader "
            "process would hold a GPU back"
        )
    return values
