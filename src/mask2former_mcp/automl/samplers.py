"""Optuna's samplers and pruners behind the algorithm names, and the space in Optuna's distributions.

A sampler is made anew for every proposal, seeded by (study seed, trial number): what it proposes depends on the history
in the storage alone, not on how often the supervisor was restarted in between.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from mask2former_mcp.automl.algorithms import Algorithm
from mask2former_mcp.automl.rungs import RungPruner
from mask2former_mcp.automl.space import Parameter, Space

T = TypeVar("T")

# Trials before the Parzen estimator takes over. Optuna's 10 is more than most studies here have.
TPE_STARTUP = 4


class _OverWholeSpace(BaseSampler):
    """Optuna's samplers relate the keys that every past trial has. Trial 0 lacks those whose resolved value lies
    outside the space, and would keep them apart for good."""

    space: Mapping[str, BaseDistribution]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self.space)


class _Tpe(_OverWholeSpace, TPESampler):
    pass


class _Cmaes(_OverWholeSpace, CmaEsSampler):
    pass


def sampler(algorithm: Algorithm, space: Space, *, seed: int, trial: int) -> BaseSampler:
    """The sampler that proposes this one trial."""
    own = (seed * 1_000_003 + trial * 7_919) % 2**31
    match algorithm.sampler:
        case "gp":
            # scikit-learn takes a second to load, and trial 0 needs no sampler.
            from mask2former_mcp.automl.gaussian import GaussianProcessSampler

            return GaussianProcessSampler(distributions(space), seed=own)
        case "random":
            return RandomSampler(seed=own)
        case "tpe":
            tpe = _experimental(
                lambda: _Tpe(seed=own, multivariate=True, constant_liar=True, n_startup_trials=TPE_STARTUP)
            )
            tpe.space = _varied(space)
            return tpe
        case "cmaes":
            # The same seed each time: its state, drawn from it, travels through the storage. Options have no state:
            # they are drawn by themselves, anew for each trial.
            options: dict[str, Any] = {"with_margin": True, "warn_independent_sampling": False}
            cmaes = _experimental(
                lambda: _Cmaes(seed=seed % 2**31, independent_sampler=RandomSampler(seed=own), **options)
            )
            cmaes.space = {
                name: each for name, each in _varied(space).items() if not isinstance(each, CategoricalDistribution)
            }
            return cmaes


def pruner(algorithm: Algorithm, *, first_rung: int, longest: int, reduction_factor: int) -> BasePruner:
    """Rungs stand at first_rung * reduction_factor ** k epochs. With none before the last epoch nothing is stopped."""
    if algorithm.pruner == "none" or first_rung >= longest:
        return NopPruner()
    return RungPruner(
        first=first_rung,
        longest=longest,
        reduction_factor=reduction_factor,
        brackets=algorithm.pruner == "hyperband",
    )


def distributions(space: Space) -> dict[str, BaseDistribution]:
    return {parameter.key: _distribution(parameter) for parameter in space.parameters}


def _varied(space: Space) -> dict[str, BaseDistribution]:
    return {name: each for name, each in sorted(distributions(space).items()) if not each.single()}


def _distribution(parameter: Parameter) -> BaseDistribution:
    match parameter.kind:
        case "real":
            return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
        case "whole":
            step = 1 if parameter.log else parameter.step
            return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
        case "power":
            return IntDistribution(int(parameter.low), int(parameter.high))
        case "choice":
            return CategoricalDistribution(parameter.choices)
        case "weighted":
            return FloatDistribution(0.0, 1.0)


def _experimental(build: Callable[[], T]) -> T:
    """Optuna marks these options experimental; they have stood for years, and the warning helps no user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return build()
