"""Search algorithms by the names that TAO users know, and what stands behind each here. No Optuna: planning reads this.

A name that is not offered is an error with the nearest one that is, never a silent stand-in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from mask2former_mcp.errors import InvalidRequest

DEFAULT = "bayesian"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`sampler` proposes; `pruner` stops trials early: at rungs (halving), at rungs of several brackets, or never."""

    name: str
    sampler: Literal["gp", "tpe", "random", "cmaes"]
    pruner: Literal["none", "halving", "hyperband"]
    about: str


_OFFERED = (
    Algorithm("bayesian", "gp", "halving", "a Gaussian process over the space; weak trials stop at rungs"),
    Algorithm("tpe", "tpe", "halving", "multivariate tree-structured Parzen estimator; weak trials stop at rungs"),
    Algorithm("random", "random", "none", "independent random draws, each trained in full"),
    Algorithm("asha", "random", "halving", "random draws, asynchronous successive halving"),
    Algorithm("hyperband", "random", "hyperband", "random draws, successive halving in several brackets"),
    Algorithm("bohb", "tpe", "hyperband", "Parzen estimator proposals in hyperband's brackets"),
    Algorithm("cmaes", "cmaes", "none", "CMA-ES; numbers only, wants 20 trials or more, each trained in full"),
)
OFFERED: Mapping[str, Algorithm] = MappingProxyType({algorithm.name: algorithm for algorithm in _OFFERED})

# name -> (nearest that is offered, why this one is not)
_NOT_OFFERED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "pbt": ("asha", "population based training copies weights between trials; here every trial stands alone"),
        "hyperband_es": ("hyperband", "its brackets already stop weak trials early"),
        "dehb": ("bohb", "differential evolution over brackets has no well-kept implementation to build on"),
        "bfbo": ("bayesian", "the Gaussian process here already takes running trials into account"),
        "llm": ("bayesian", "no language model is asked for values; the agent can pass its own in search_space"),
        "hybrid": ("bayesian", "no language model is asked for values; the agent can pass its own in search_space"),
        "autoresearch": ("bayesian", "no language model is asked for values"),
        "grid": ("random", "a grid spends most trials on parameters that do not matter"),
    }
)
_SHORT = {"b": "bayesian", "h": "hyperband", "hes": "hyperband_es", "gp": "bayesian", "cma-es": "cmaes"}


def require_numbers(chosen: Algorithm, numbers: Sequence[str]) -> None:
    """InvalidRequest where CMA-ES would have fewer than the two dimensions that it needs. `numbers`: numeric keys."""
    if chosen.sampler == "cmaes" and len(numbers) < 2:
        raise InvalidRequest(
            f"algorithm {chosen.name!r} needs two or more numeric keys to vary, and has {', '.join(numbers) or 'none'}",
            fix=f"Nearest: tpe ({OFFERED['tpe'].about}). Or give search_space ranges of two numbers.",
        )


def algorithm(name: str | None) -> Algorithm:
    """The algorithm of this name, `bayesian` for None. InvalidRequest names the nearest one."""
    asked = (name or DEFAULT).strip().lower()
    asked = _SHORT.get(asked, asked)
    if asked in OFFERED:
        return OFFERED[asked]
    offered = ", ".join(OFFERED)
    if asked in _NOT_OFFERED:
        nearest, reason = _NOT_OFFERED[asked]
        raise InvalidRequest(
            f"algorithm {name!r} is not offered: {reason}",
            fix=f"Nearest: {nearest} ({OFFERED[nearest].about}). Offered: {offered}.",
        )
    near = get_close_matches(asked, [*OFFERED, *_NOT_OFFERED], n=1)
    hint = f"Did you mean {near[0]}? " if near and near[0] in OFFERED else ""
    raise InvalidRequest(f"algorithm {name!r} is not known", fix=f"{hint}Offered: {offered}.")
