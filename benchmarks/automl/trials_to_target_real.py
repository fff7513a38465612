"""Trials until 95, 98 and 99 % of the best known value, on short real trainings (short_training.py).

    python benchmarks/automl/trials_to_target_real.py --out searches.jsonl [--seeds 20] [--limit 24] [--workers 16]
                          [--algorithms bayesian random tao] [--minutes 60] [--device cpu|cuda] [--off 1]
    python benchmarks/automl/trials_to_target_real.py --summarise searches.jsonl [more.jsonl ...]

A search is one data set and one algorithm, its trials one after the other; searches run side by side, one thread each.
Each writes a JSON line when it ends, so a run that is cut off loses only what was under way; after --minutes no trial
is begun. The summary counts on sets that every algorithm in the files was tried on, and of an algorithm as many trials
as all of its searches have. The best known value of a set is the best that any of the searches found there. `random`
draws from our space, without the resolved values as first trial; `tao` is `bayesian` of nvidia-tao-automl 7.2.0 with
its packaged ranges, where that is installed.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parent))
import searches
import short_training
import trials_to_target

TARGETS = (0.95, 0.98, 0.99)
SHOWN = (1, 2, 4, 8, 12, 16, 24)  # trials after which the best so far is told
Line = Mapping[str, Any]


def search(folder: Path, seed: int, algorithm: str, options: argparse.Namespace, deadline: float) -> Line | None:
    """One search, of fewer trials when the time was up before its last one; None when there was none."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    training = short_training.Training(folder, seed, options.off)
    asked = _asked(algorithm, training, seed)
    started, values, knobs, failures = time.perf_counter(), [], [], {}
    for number in range(options.limit):
        if time.time() > deadline:
            break
        trial, proposal = asked.ask()
        proposal = short_training.their_knobs(proposal) if algorithm == "tao" else proposal
        value, why = training.value(proposal)
        asked.tell(trial, value)
        values.append(None if value is None else round(value, 4))
        knobs.append({key: round(float(each), 8) for key, each in proposal.items()})
        if value is None:
            failures[number] = why[:200]
        print(f"set {seed} {algorithm} {number}: {values[-1]}", file=sys.stderr, flush=True)
    if not values:
        return None
    seconds = round(time.perf_counter() - started, 1)
    ran = {"device": options.device, "off": options.off, "seconds": seconds}
    return {"seed": seed, "algorithm": algorithm, **ran, "values": values, "failures": failures, "knobs": knobs}


def _asked(algorithm: str, training: short_training.Training, seed: int) -> Any:
    if algorithm == "tao":
        import tao_bayesian  # not installed with this project

        return tao_bayesian.Theirs(seed)
    return searches.Ours(algorithm, training.space, training.resolved, seed)


def summarise(lines: Sequence[Line]) -> None:
    """One JSON line an algorithm and share of the best known value."""
    algorithms = list(dict.fromkeys(line["algorithm"] for line in lines))
    found = {(line["seed"], line["algorithm"]): [value or 0.0 for value in line["values"]] for line in lines}
    seeds = [seed for seed in sorted({seed for seed, _ in found}) if all((seed, name) in found for name in algorithms)]
    best = {seed: max(max(found[seed, name]) for name in algorithms) for seed in seeds}
    seeds = [seed for seed in seeds if best[seed] > 0]
    for name in algorithms if seeds else ():
        limit = min(len(found[seed, name]) for seed in seeds)
        for target in TARGETS:
            counts = [needed(found[seed, name][:limit], target * best[seed]) for seed in seeds]
            print(json.dumps({"share": target, **trials_to_target.summary(name, counts, limit)}))
        shares = {n: [max(found[seed, name][:n]) / best[seed] for seed in seeds] for n in SHOWN if n <= limit}
        curve = {n: round(float(np.median(each)), 3) for n, each in shares.items()}
        seconds = [line["seconds"] / len(line["values"]) for line in lines if line["algorithm"] == name]
        failed = sum(value is None for line in lines if line["algorithm"] == name for value in line["values"])
        told = {"best_so_far_of_best_known": curve, "failed": failed, "seconds_a_trial": round(np.median(seconds), 1)}
        print(json.dumps({"algorithm": name, **told}))
    values = {"median": float(np.median(list(best.values()))) if seeds else None}
    print(json.dumps({"sets": len(seeds), "left_out": len({s for s, _ in found}) - len(seeds), "best_known": values}))


def needed(values: Sequence[float], target: float) -> int | None:
    return next((number for number, value in enumerate(values, 1) if value >= target), None)


def run(options: argparse.Namespace) -> list[Line]:
    """All searches of the options; what has ended by the deadline."""
    deadline = time.time() + options.minutes * 60
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    spawn = multiprocessing.get_context("spawn")
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        jobs = [
            pool.submit(search, Path(folder) / name, seed, name, options, deadline)
            for seed in seeds
            for name in options.algorithms
        ]
        for ended in as_completed(jobs):
            if (line := ended.result()) is not None:
                lines.append(line)
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{len(lines)} of {len(jobs)} searches", file=sys.stderr, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--summarise", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("trials-real.jsonl"))
    parser.add_argument("--first-seed", type=int, default=100)  # 0 to 9 served for choosing the trainings
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--off", type=float, default=1.0)
    parser.add_argument("--algorithms", nargs="+", default=["bayesian", "random"])
    options = parser.parse_args()
    if importlib.util.find_spec("tao_automl") is None and "tao" in options.algorithms:
        print("tao is left out: pip install nvidia-tao-automl==7.2.0", file=sys.stderr)
        options.algorithms.remove("tao")
    if options.summarise:
        lines = [
            json.loads(line) for file in options.summarise for line in file.read_text(encoding="utf-8").splitlines()
        ]
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
        # Compiling kernels and recording a graph of the step repay themselves in longer trainings than these.
        os.environ["M2F_FAST_PATH"] = "0"
        if options.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        lines = run(options)
    summarise(lines)


if __name__ == "__main__":
    main()
