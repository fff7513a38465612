"""Trials until 95 % of the best known value on the stand-in: our algorithms and random search, one a line.

    python benchmarks/automl/trials_to_target.py [--seeds 40] [--limit 60] [--at-once 1]
                                                 [--algorithms bayesian tpe random cmaes]

Every trial is trained in full, so that only the proposals are compared; with several at once each ends in its turn, and
the trials that still run are no help to the next proposal. `random` draws from the same
curated space but has no first trial with the resolved values, as plain random search has none. Prints one JSON line per
algorithm with every seed's count; a search that did not get there counts as `limit` and is marked.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parent))
import searches
import standin

from mask2former_mcp import bundle
from mask2former_mcp.automl import derive

TARGET = 0.95 * standin.PEAK


def trials_needed(name: str, seed: int, limit: int, *, at_once: int = 1) -> int | None:
    """How many trials a study of this seed starts until one is good enough; None: not within `limit`."""
    packaged = bundle.load()
    space = derive.derive(packaged.schema("train"), packaged.template("train"))
    instance, noise = standin.Instance.drawn(seed), np.random.default_rng([7, seed])
    search = searches.Ours(name, space, standin.RESOLVED, seed)
    running = []
    for number in range(limit):
        trial, values = search.ask()
        running.append((trial, instance.measured(values, noise)))
        if len(running) == at_once:
            search.tell(*running.pop(0))
        if instance.value(values) >= TARGET:
            return number + 1
    return None


def summary(name: str, counts: list[int | None], limit: int) -> dict[str, object]:
    """Median and a 95 % bootstrap interval of it; the middle half of the seeds."""
    reached = np.array([limit if count is None else count for count in counts])
    random = np.random.default_rng(0)
    medians = [float(np.median(random.choice(reached, len(reached)))) for _ in range(2000)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return {
        "algorithm": name,
        "seeds": len(counts),
        "median": float(np.median(reached)),
        "median_95": [float(low), float(high)],
        "quartiles": [float(q) for q in np.percentile(reached, [25, 75])],
        "not_reached": sum(count is None for count in counts),
        "limit": limit,
        "counts": counts,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first-seed", type=int, default=1000)  # 0 to 224 served for tuning the defaults
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--algorithms", nargs="+", default=["bayesian", "tpe", "cmaes", "random"])
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in options.algorithms:
        started = time.perf_counter()
        counts = [
            trials_needed(name, seed, options.limit, at_once=options.at_once)
            for seed in range(options.first_seed, options.first_seed + options.seeds)
        ]
        line = summary(name, counts, options.limit)
        print(
            json.dumps({**line, "at_once": options.at_once, "seconds": round(time.perf_counter() - started, 1)}),
            flush=True,
        )


if __name__ == "__main__":
    main()
