"""How many processes work on one run: TAO's environment, and the spec where the environment says nothing.

    WORLD_SIZE                nodes (not processes)
    NUM_GPU_PER_NODE          processes of each node, one a GPU; where it is not set, as many as the node has GPUs
    NODE_RANK, or RANK        which node this is, from 0
    MASTER_ADDR, MASTER_PORT  where the first node listens; localhost and 29500 where they are not set

The command is started once on each node; it starts the node's processes itself (launch.py). A machine without a GPU
runs as many processes on its CPU cores.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import Experiment

SHARED_VERBS = ("train", "evaluate")  # all others use one process
CHANNEL = "M2F_CHANNEL"  # descriptor by which a started process talks with the one that started it


@dataclass(frozen=True, slots=True)
class Processes:
    """nodes x each processes; node: which one this is; address, port: of the first."""

    nodes: int = 1
    each: int = 1
    node: int = 0
    address: str = "localhost"
    port: int = 29500

    @property
    def total(self) -> int:
        return self.nodes * self.each


def of(action: str, spec: Experiment, environ: Mapping[str, str]) -> Processes:
    """What the spec and the environment ask for. Raises ValueError for an environment that contradicts itself."""
    block = getattr(spec, action)
    each = int(block.num_gpus) if action in SHARED_VERBS else 1
    nodes = getattr(block, "num_nodes", None) or (_number(environ, "WORLD_SIZE") if "WORLD_SIZE" in environ else 1)
    if nodes * each > 1 and "LOCAL_RANK" in environ and CHANNEL not in environ:
        raise ValueError(
            "LOCAL_RANK is set, as torchrun does: start mask2former once on each node, without torchrun, with"
            " WORLD_SIZE (the number of nodes), NUM_GPU_PER_NODE, NODE_RANK, MASTER_ADDR and MASTER_PORT. It starts the"
            " other processes itself"
        )
    if nodes == 1:
        return Processes(each=each)
    name = "NODE_RANK" if "NODE_RANK" in environ else "RANK"
    if name not in environ:
        raise ValueError(f"{action}.num_nodes = {nodes}, but NODE_RANK is not set: it says which node this is, from 0")
    node = _number(environ, name, least=0)
    if node >= nodes:
        raise ValueError(f"{name} = {node} with {nodes} nodes: must be below {nodes}")
    port = _number(environ, "MASTER_PORT", least=1) if "MASTER_PORT" in environ else Processes().port
    return Processes(nodes, each, node, environ.get("MASTER_ADDR") or Processes().address, port)


def from_environment(action: str, mapping: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The spec's mapping with the counts that the environment sets, which win. Raises ValueError."""
    changed = dict(mapping)
    if action not in (*SHARED_VERBS, "inference"):
        return changed
    if "WORLD_SIZE" in environ:
        changed = dotted.with_value(changed, f"{action}.num_nodes", _number(environ, "WORLD_SIZE"))
    if "NUM_GPU_PER_NODE" in environ:
        each = _number(environ, "NUM_GPU_PER_NODE")
    elif "WORLD_SIZE" in environ:
        each = max(1, importlib.import_module("torch").cuda.device_count())
    else:
        return changed
    changed = dotted.with_value(changed, f"{action}.num_gpus", each)
    return dotted.with_value(changed, f"{action}.gpu_ids", list(range(each)))


def is_first(environ: Mapping[str, str]) -> bool:
    """Whether this process writes what is written once: the first of the first node, and whoever started it."""
    several = environ.get("WORLD_SIZE", "1") != "1"
    node = environ.get("NODE_RANK", environ.get("RANK", "0")) if several else "0"
    return node == "0" and environ.get("LOCAL_RANK", "0") == "0"


def _number(environ: Mapping[str, str], name: str, *, least: int = 1) -> int:
    text = environ[name]
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} = {text!r} in the environment: must be a whole number, at least {least}")
    return int(text)
