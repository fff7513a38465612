"""Patterns by which a spec names parts of the network: a module, a module above it, or either with * and ?."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn


def of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The modules of a network, as `chosen` takes them."""
    return {name: (name,) for name, _ in model.named_modules()}


def chosen(patterns: Iterable[str], things: Mapping[str, Sequence[str]], key: str) -> set[str]:
    """The things that a pattern fits by any of their names. Raises ValueError for a pattern that fits none."""
    found: set[str] = set()
    for pattern in patterns:
        fitting = {thing for thing, names in things.items() if any(fits(name, pattern) for name in names)}
        if not fitting:
            raise ValueError(
                f"{key}: {pattern!r} is no part of this network. Give a module's name, such as backbone.layers.0, or a"
                " pattern of names, such as backbone.*"
            )
        found |= fitting
    return found


def fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
