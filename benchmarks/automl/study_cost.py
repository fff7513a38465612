"""What a study with the default budget costs and brings on the stand-in, against the plain run it starts from.

    python benchmarks/automl/study_cost.py [--seeds 20] [--epochs 20]

One device, defaults only: trial 0 in full, the others through rungs, at most three plain runs in all. Reported are the
epochs trained (in plain runs) and the noise-free value of the winner over that of the plain run.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import standin

from mask2former_mcp import bundle
from mask2former_mcp.automl import derive
from mask2former_mcp.automl.budget import Devices, StudySettings, settle
from mask2former_mcp.automl.search import Search
from mask2former_mcp.planning.request import AutomlSettings
from mask2former_mcp.spec import dotted


def settings_for(seed: int, epochs: int, algorithm: str) -> tuple[StudySettings, dict[str, object]]:
    packaged = bundle.load()
    spec = dotted.with_value(packaged.template("train"), "train.num_epochs", epochs)
    space = derive.derive(packaged.schema("train"), spec)
    asked = AutomlSettings(seed=seed, algorithm=algorithm)
    return settle(asked, spec, Devices("gpu", 1, 1), space, "mIoU"), dotted.flatten(spec)


def study(seed: int, epochs: int, algorithm: str) -> tuple[float, float, float, int]:
    """(cost in plain runs, plain value, winner's value, trials)."""
    settings, resolved = settings_for(seed, epochs, algorithm)
    instance, noise = standin.Instance.drawn(seed), np.random.default_rng([7, seed])
    spent, results = 0, {}
    assert settings.total_epochs is not None
    with tempfile.TemporaryDirectory() as folder:
        search = Search(Path(folder), settings, resolved)
        while search.started() < settings.max_trials and spent + settings.first_rung <= settings.total_epochs:
            trial = search.propose()
            results.update(run(search, settings, instance, trial, noise, spent))
            spent += search.trials()[trial.number].last_step or 0
        finished = {number: value for number, value in results.items() if value is not None}
        winner = max(finished, key=lambda number: finished[number])
        values = {t.number: instance.value(t.user_attrs["values"]) for t in search.trials() if "values" in t.user_attrs}
        search.close()
    return spent / epochs, values[0], values[winner], len(results)


def run(search, settings, instance, trial, noise, spent):  # type: ignore[no-untyped-def]
    for epoch, best in enumerate(instance.curve(trial.values, settings.epochs, noise), start=1):
        search.report(trial.number, epoch, best)
        rest = settings.total_epochs - spent
        out = trial.number > 0 and epoch in settings.rungs() and settings.next_rung(epoch) > rest
        if epoch < settings.epochs and (search.should_stop(trial.number) or out):
            search.stop(trial.number)
            return {trial.number: None}
    search.finish(trial.number, best)
    return {trial.number: best}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first-seed", type=int, default=1000)  # 0 to 224 served for tuning the defaults
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--algorithms", nargs="+", default=["bayesian", "tpe", "asha", "random"])
    options = parser.parse_args()
    for algorithm in options.algorithms:
        found = [
            study(seed, options.epochs, algorithm)
            for seed in range(options.first_seed, options.first_seed + options.seeds)
        ]
        cost, plain, won, trials = (np.array(column, dtype=float) for column in zip(*found, strict=True))
        line = {
            "algorithm": algorithm,
            "seeds": options.seeds,
            "trials": float(np.median(trials)),
            "cost_median": round(float(np.median(cost)), 2),
            "cost_max": round(float(cost.max()), 2),
            "plain_median": round(float(np.median(plain)), 4),
            "winner_median": round(float(np.median(won)), 4),
            "gain_quartiles": [round(float(q), 4) for q in np.percentile(won - plain, [25, 50, 75])],
            "worse_than_plain": int((won < plain - 2 * standin.NOISE).sum()),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
