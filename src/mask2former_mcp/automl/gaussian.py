"""A sampler for few, dear trials: a Gaussian process on the unit cube, expected improvement over random candidates.

Optuna's own one needs torch, which this process must not load; this one rests on scikit-learn. With ten trials or
fewer, the usual size of a study here, it finds good values in fewer trials than the Parzen estimator
(benchmarks/automl). Running trials count as if they came out one standard deviation below what is predicted for them, a
liar as in Ginsbourger et al. 2010, and no proposal comes close to one.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from mask2former_mcp.automl.growth import reached

Array = NDArray[np.float64]

STARTUP = 2
CANDIDATES = 2048
LOCAL_SHARE = 0.5  # of the candidates, drawn around the best trial so far
LOCAL_WIDTH = 0.1
FIRST_LOOK = 0.25
APART = 0.1  # from every running trial, on the unit cube
SHORTEST = 0.3
FLOOR = 0.5


class GaussianProcessSampler(BaseSampler):
    """Maximises. Until `startup` trials have a result (the enqueued ones count), proposals are spread out instead."""

    def __init__(self, space: Mapping[str, BaseDistribution], *, seed: int, startup: int = STARTUP) -> None:
        self._space = dict(space)
        self._rng = np.random.default_rng(seed)
        self._startup = startup
        self._independent = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: each for name, each in self._space.items() if not each.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        names = sorted(search_space)
        observed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        values = reached(observed)
        seen = [t for t in observed if t.number in values and all(name in t.params for name in names)]
        width = sum(_width(search_space[name]) for name in names)
        known = np.array([_point(t.params, names, search_space) for t in seen]).reshape(len(seen), width)
        results = np.array([values[t.number] for t in seen], dtype=float)
        if len(results):
            # A diverged run says "not here"; how far below it fell would only flatten the rest of the landscape.
            results = np.maximum(results, FLOOR * results.max())
        running = [
            t
            for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if t.number != trial.number and all(name in t.params for name in names)
        ]
        pending = np.array([_point(t.params, names, search_space) for t in running]).reshape(len(running), width)
        if len(seen) < self._startup:
            chosen = self._apart(np.vstack([known, pending]), width)
        else:
            chosen = self._improving(known, results, pending, width)
        return _params(chosen, names, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def _apart(self, taken: Array, width: int) -> Array:
        """A first look around: the candidate farthest from all proposals so far, none of them in a corner."""
        if not len(taken):
            return np.full(width, 0.5)
        candidates = np.clip(taken[0] + self._rng.uniform(-FIRST_LOOK, FIRST_LOOK, (256, width)), 0.0, 1.0)
        distance = np.linalg.norm(candidates[:, None, :] - taken[None, :, :], axis=2).min(axis=1)
        return np.asarray(candidates[int(distance.argmax())])

    def _improving(self, known: Array, values: Array, pending: Array, width: int) -> Array:
        model = _fitted(known, values, seed=int(self._rng.integers(2**31)))
        if len(pending):
            mean, spread = model.predict(pending, return_std=True)
            known, values = np.vstack([known, pending]), np.concatenate([values, mean - spread])
            model = _fitted(known, values, seed=0, kernel=model.kernel_)
        best = known[int(np.asarray(model.predict(known)).argmax())]
        local = int(CANDIDATES * LOCAL_SHARE)
        near = np.clip(best + self._rng.normal(0.0, LOCAL_WIDTH, (local, width)), 0.0, 1.0)
        candidates = _not_running(np.vstack([self._rng.random((CANDIDATES - local, width)), near]), pending)
        mean, spread = model.predict(candidates, return_std=True)
        target = float(np.asarray(model.predict(known)).max())
        return np.asarray(candidates[int(_expected_improvement(mean, spread, target).argmax())])


def _not_running(candidates: Array, pending: Array) -> Array:
    """Those that are not nearly a running trial again; all of them where the space leaves no other."""
    if not len(pending):
        return candidates
    distance = np.linalg.norm(candidates[:, None, :] - pending[None, :, :], axis=2).min(axis=1)
    return candidates if distance.max() < APART else candidates[distance >= APART]


def _fitted(points: Array, values: Array, *, seed: int, kernel: Any = None) -> GaussianProcessRegressor:
    """Matern 5/2 with one length scale per axis, bounded so that few points cannot claim a flat or a spiky world."""
    if kernel is None:
        scales = Matern(length_scale=[1.0] * points.shape[1], length_scale_bounds=(SHORTEST, 4.0), nu=2.5)
        kernel = ConstantKernel(1.0, (0.05, 20.0)) * scales + WhiteKernel(1e-2, (1e-4, 0.3))
        optimizer, restarts = "fmin_l_bfgs_b", 2
    else:
        optimizer, restarts = None, 0
    model = GaussianProcessRegressor(
        kernel, optimizer=optimizer, n_restarts_optimizer=restarts, normalize_y=True, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound is what the bound is for
        model.fit(points, values)
    return model


def _expected_improvement(mean: Array, spread: Array, target: float) -> Array:
    """Jones, Schonlau and Welch 1998, eq. 15, for maximisation."""
    spread = np.maximum(spread, 1e-9)
    z = (mean - target) / spread
    return np.asarray((mean - target) * norm.cdf(z) + spread * norm.pdf(z))


def _width(distribution: BaseDistribution) -> int:
    return len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 1


def _point(params: Mapping[str, Any], names: Sequence[str], space: Mapping[str, BaseDistribution]) -> list[float]:
    """Parameters on the unit cube; options one-hot."""
    point: list[float] = []
    for name in names:
        distribution, value = space[name], params[name]
        if isinstance(distribution, CategoricalDistribution):
            point += [float(choice == value) for choice in distribution.choices]
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            low, high = _ends(distribution)
            at = np.log(value) if distribution.log else value
            point.append(float((at - low) / (high - low)))
    return point


def _params(point: Array, names: Sequence[str], space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    at = 0
    for name in names:
        distribution = space[name]
        width = _width(distribution)
        if isinstance(distribution, CategoricalDistribution):
            params[name] = distribution.choices[int(point[at : at + width].argmax())]
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            low, high = _ends(distribution)
            value = low + float(point[at]) * (high - low)
            params[name] = _legal(distribution, float(np.exp(value)) if distribution.log else value)
        at += width
    return params


def _ends(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    ends = (float(distribution.low), float(distribution.high))
    return (float(np.log(ends[0])), float(np.log(ends[1]))) if distribution.log else ends


def _legal(distribution: FloatDistribution | IntDistribution, value: float) -> float | int:
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        steps = round((value - low) / distribution.step)
        return int(min(max(low + steps * distribution.step, low), high))
    return min(max(value, low), high)
