"""Short real trainings on a CPU: plain training against a search of five trials, at the same epochs.

    python benchmarks/automl/real_trainings.py [--sets 3] [--epochs 9] [--trials 5] [--algorithm bayesian]

Every data set is drawn anew (48 training, 16 validation images of 96 pixels). The plain run (`automl_policy=off`) and
the study go through the real planner, jobs and engine. The study chooses by validation mIoU, so its winner cannot be
below the plain run there; what counts is `fresh`: mIoU on 32 images that neither has seen nor chosen by. One JSON line
a data set. Trainings this short are far from converged.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from mask2former_mcp import bundle
from mask2former_mcp.automl import result
from mask2former_mcp.automl.planner import StudyPlanner
from mask2former_mcp.demo import scenes
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import ActionRequest, AutomlSettings, EvaluateRequest, TrainRequest
from mask2former_mcp.settings import Settings

SMALL: dict[str, Any] = {
    "dataset.augmentation.train_crop_size": [64, 64],
    "dataset.augmentation.train_min_size": [96],
    "dataset.augmentation.test_min_size": 96,
    "dataset.train.num_workers": 0,
    "dataset.val.num_workers": 0,
}
PATIENCE_S = 900.0


class Bench:
    def __init__(self, home: Path) -> None:
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        settings = Settings(home=home, gpus="none")
        self.jobs = Jobs(settings, environ)
        self.planner = StudyPlanner(Planner(bundle.load(), settings, self.jobs, environ=environ))

    def done(self, request: ActionRequest) -> Job:
        job = self.jobs.submit(self.planner.plan(request))
        ended = self.jobs.wait(job.id, PATIENCE_S)
        if ended.state is not JobState.SUCCEEDED:
            raise SystemExit(f"{job.id} {ended.state}: {ended.message}")
        return ended

    def fresh(self, train: Job, data: Path) -> float:
        """mIoU of the best checkpoint on images that no choice was made by."""
        request = EvaluateRequest(parent_job_id=train.id, eval_dataset=str(data / "val"))
        return self.done(request).metrics["mIoU"]


def one(bench: Bench, folder: Path, seed: int, epochs: int, trials: int, algorithm: str) -> dict[str, Any]:
    data = scenes.make(folder / f"set-{seed}", train=48, val=16, test=1, size=96, seed=seed, workers=1)
    unseen = scenes.make(folder / f"fresh-{seed}", train=2, val=32, test=1, size=96, seed=1000 + seed, workers=1)
    common: dict[str, Any] = {
        "train_dataset": str(data),
        "preset": "mini",
        "num_epochs": epochs,
        "overrides": SMALL,
    }
    plain = bench.done(TrainRequest(**common, automl_policy="off"))
    asked = AutomlSettings(max_trials=trials, seed=seed, algorithm=algorithm)
    study = bench.done(TrainRequest(**common, automl=asked))
    found = result.read(bench.jobs.results_dir(study.id)) or {}
    first = found["trials"][0]
    return {
        "set": seed,
        "algorithm": algorithm,
        "plain": round(plain.metrics["mIoU"], 4),
        "trial_0": round(first["metric"], 4),
        "winner": round(found["winner"]["metric"], 4),
        "winner_trial": found["winner"]["trial"],
        "winner_parameters": found["winner"]["parameters"],
        "plain_fresh": round(bench.fresh(plain, unseen), 4),
        "winner_fresh": round(bench.fresh(study, unseen), 4),
        "epochs": found["budget"]["epochs_trained"],
        "status": [line["status"] for line in found["trials"]],
        "values": [line["metric"] for line in found["trials"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--algorithm", default="bayesian")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "home")
        for seed in range(options.sets):
            started = time.perf_counter()
            line = one(bench, Path(folder), seed, options.epochs, options.trials, options.algorithm)
            print(json.dumps({**line, "seconds": round(time.perf_counter() - started)}), flush=True)
        bench.jobs.close()


if __name__ == "__main__":
    main()
