"""The same count for the `bayesian` algorithm of nvidia-tao-automl 7.2.0 with its packaged mask2former ranges.

    python -m venv tao && tao/bin/pip install nvidia-tao-automl==7.2.0
    tao/bin/python benchmarks/automl/tao_bayesian.py [--seeds 20] [--limit 100]

Their algorithm object is driven as their runner drives it: one recommendation, its result, the next. The ranges are the
ones their own code derives for `mask2former train` when nobody hands it others. Not installed with this project.
"""

import argparse
import json
import logging
import sys
import time
import types
from pathlib import Path

import numpy as np
from tao_automl.brain.bayesian import Bayesian
from tao_automl.schema.generate_schema import generate_schema
from tao_automl.search_space.params import generate_hyperparams_to_search
from tao_automl.types import JobStates, Recommendation

sys.path.insert(0, str(Path(__file__).parent))
import standin

TARGET = 0.95 * standin.PEAK
logging.getLogger("tao_automl").setLevel(logging.WARNING)  # it tells every parameter of every trial


class Specs:
    """What their algorithms ask of a state store."""

    def __init__(self, specs):
        self.specs = specs

    def get_job_specs(self, job_id):
        return self.specs

    def get_custom_param_ranges(self, experiment_id):
        return {}


class Theirs:
    """Asked as `searches.Ours` is."""

    def __init__(self, seed):
        schema = generate_schema("mask2former", "train")
        specs = schema["default"]
        self.parameters, _ = generate_hyperparams_to_search("mask2former", "train", specs, None, schema=schema)
        context = types.SimpleNamespace(id=f"job-{seed}", handler_id="experiment")
        own = [dict(parameter) for parameter in self.parameters]
        self._search = Bayesian(context, Specs(specs), "mask2former", own, metric="mIoU")
        self._history = []
        np.random.seed(seed)  # their own seed is hash(job id), which Python draws anew in every process

    def ask(self):
        (proposal,) = self._search.generate_recommendations(self._history)
        recommendation = Recommendation(len(self._history), proposal, "mIoU")
        self._history.append(recommendation)
        return recommendation, proposal

    def tell(self, recommendation, value):
        """None: the trial failed, and their algorithm forgets it."""
        recommendation.status = JobStates.failure if value is None else JobStates.success
        recommendation.update_result(0.0 if value is None else value)


def trials_needed(seed, limit):
    instance, noise = standin.Instance.drawn(seed), np.random.default_rng([7, seed])
    search = Theirs(seed)
    best = 0.0
    for number in range(limit):
        recommendation, proposal = search.ask()
        search.tell(recommendation, instance.measured(proposal, noise))
        best = max(best, instance.value(proposal))
        if best >= TARGET:
            return number + 1, best
    return None, best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    ranges = {p["parameter"]: [str(p["valid_min"]), str(p["valid_max"])] for p in Theirs(0).parameters}
    print(json.dumps({"parameters": ranges}))
    started = time.perf_counter()
    results = []
    for seed in range(options.seeds):
        results.append(trials_needed(seed, options.limit))
        print(seed, results[-1], round(time.perf_counter() - started, 1), file=sys.stderr, flush=True)
    counts = [count for count, _ in results]
    reached = [options.limit if count is None else count for count in counts]
    print(
        json.dumps(
            {
                "algorithm": "nvidia-tao-automl 7.2.0 bayesian, packaged ranges",
                "seeds": options.seeds,
                "median": float(np.median(reached)),
                "not_reached": sum(count is None for count in counts),
                "limit": options.limit,
                "best_share_of_best_known": [round(best / standin.PEAK, 3) for _, best in results],
                "counts": counts,
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
