"""Searches that are asked for trials one after the other: ours, by the names of our algorithms."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from mask2former_mcp.automl import samplers
from mask2former_mcp.automl.algorithms import algorithm
from mask2former_mcp.automl.space import Space


class Ours:
    """An algorithm of ours over a curated space. The first trial is the resolved spec, but `random` has no such trial,
    as plain random search has none.
    """

    def __init__(self, name: str, space: Space, resolved: Mapping[str, Any], seed: int) -> None:
        self._algorithm, self._space, self._seed = algorithm(name), space, seed
        self._study = optuna.create_study(direction="maximize")
        if name != "random":
            self._study.enqueue_trial(space.encode(resolved))

    def ask(self) -> tuple[Trial, dict[str, Any]]:
        """A trial to tell the result of, and its spec values."""
        number = sum(trial.state != TrialState.WAITING for trial in self._study.get_trials(deepcopy=False))
        self._study.sampler = samplers.sampler(self._algorithm, self._space, seed=self._seed, trial=number)
        trial = self._study.ask(samplers.distributions(self._space))
        return trial, self._space.decode(trial.params)

    def tell(self, trial: Trial, value: float | None) -> None:
        """None: the trial failed."""
        self._study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
