"""Several trials at once: proposals know of each other before anything has a result, and cost little of the quality."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import optuna
import pytest

from mask2former_mcp.automl import gaussian, samplers
from mask2former_mcp.automl.algorithms import algorithm
from mask2former_mcp.automl.space import Parameter, Space

SPACE = Space(
    parameters=tuple(
        Parameter(key=key, kind="real", low=1e-5, high=1e-3, log=True) for key in ("lr", "multiplier", "decay")
    )
)
TRIALS, SEEDS = 12, range(100, 112)
Point = tuple[float, ...]


def point(values: Mapping[str, float]) -> Point:
    """On the unit cube."""
    return tuple((math.log10(values[p.key]) + 5) / 2 for p in SPACE.parameters)


@cache
def searched(name: str, seed: int, at_once: int) -> tuple[float, float]:
    """(best value of TRIALS trials, smallest distance of two that were open together); each trial ends in its turn."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    best_at = np.random.default_rng(seed).uniform(0.15, 0.85, len(SPACE.parameters))
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(dict.fromkeys(SPACE.keys, 1e-4))
    running: list[tuple[Any, Point]] = []
    values, apart = [], math.inf

    def end() -> None:
        trial, at = running.pop(0)
        values.append(math.exp(-8 * float(np.sum((np.array(at) - best_at) ** 2))))
        study.tell(trial, values[-1])

    for number in range(TRIALS):
        study.sampler = samplers.sampler(algorithm(name), SPACE, seed=seed, trial=number)
        trial = study.ask(samplers.distributions(SPACE))
        at = point(trial.params)
        apart = min([apart, *(math.dist(at, other) for _, other in running)])
        running.append((trial, at))
        if len(running) == at_once:
            end()
    while running:
        end()
    return max(values), apart


def best(name: str, at_once: int) -> float:
    return float(np.median([searched(name, seed, at_once)[0] for seed in SEEDS]))


@pytest.mark.parametrize("at_once", [2, 4])
def test_side_by_side_the_search_finds_nearly_what_it_finds_one_after_the_other(at_once: int) -> None:
    one_by_one, random = best("bayesian", 1), best("random", 1)
    assert one_by_one > 0.95
    assert best("bayesian", at_once) > (one_by_one + random) / 2


@pytest.mark.parametrize("at_once", [2, 4])
def test_no_two_trials_that_run_together_are_nearly_the_same(at_once: int) -> None:
    assert min(searched("bayesian", seed, at_once)[1] for seed in SEEDS) > 0.99 * gaussian.APART


def test_where_the_running_trials_leave_no_room_there_is_a_proposal_all_the_same() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    narrow = Space(parameters=(Parameter(key="kind", kind="choice", choices=("a", "b")),))
    study = optuna.create_study(direction="maximize")
    study.add_trial(
        optuna.trial.create_trial(params={"kind": "a"}, distributions=samplers.distributions(narrow), value=0.5)
    )
    for number in range(12):
        study.sampler = samplers.sampler(algorithm("bayesian"), narrow, seed=0, trial=number)
        assert study.ask(samplers.distributions(narrow)).params["kind"] in ("a", "b")
