"""Training and evaluation on several GPUs of one machine: images/s, memory, efficiency, and whether the metrics agree.

    python benchmarks/scaling/scaling.py [--gpus 1 --gpus 2 --gpus 4] [--network tiny --network large] [--batch 8]
    python benchmarks/scaling/scaling.py --small --gpus 1 --gpus 2       # without GPUs: whether the script itself works

Each line is one `mask2former train` on image files (benchmarks/engine/gpu.py writes them), with the same batch a GPU,
for DDP and FSDP. Efficiency is images/s over that of one GPU times their number. One GPU is measured twice: as one GPU
trains by itself, with the whole step as a CUDA graph, and without the graph (M2F_STEP_GRAPH=0), which is what several
processes have. Then `mask2former evaluate` with 1 and with all GPUs must give equal metrics. NVLink multicast stays off.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import gpu

from mask2former_mcp.engine import fast
from mask2former_mcp.spec import dotted

SMALL: dict[str, Any] = {
    "model.backbone.swin.embed_dim": 32,
    "model.backbone.swin.depths": [1, 1, 1, 1],
    "model.backbone.swin.num_heads": [1, 2, 4, 8],
    "dataset.augmentation.train_min_size": [64],
    "dataset.augmentation.train_crop_size": [64, 64],
    "dataset.augmentation.test_min_size": 64,
    "train.precision": "fp32",
}
ENVIRONMENT = {"NCCL_NVLS_ENABLE": "0"}


def command(action: str, spec: dict[str, Any], folder: Path, **environ: str) -> str:
    """Output of one command in a process of its own. Raises CalledProcessError with it."""
    file = folder / f"{action}.yaml"
    file.write_text(yaml.safe_dump(dotted.unflatten(spec)))
    call = [sys.executable, "-m", "mask2former_mcp.engine", action, "-e", str(file)]
    done = subprocess.run(
        call, env={**os.environ, **ENVIRONMENT, **environ}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{action} failed ({done.returncode}): {done.stdout[-800:]} {done.stderr[-1500:]}")
    return done.stdout


def train(base: dict[str, Any], folder: Path, gpus: int, strategy: str, **environ: str) -> tuple[float, str]:
    results = Path(tempfile.mkdtemp(dir=folder))
    spec = {**base, "results_dir": str(results), "train.num_gpus": gpus, "train.gpu_ids": list(range(gpus))}
    spec["train.distributed_strategy"] = strategy
    if strategy == "fsdp" and spec["train.precision"] == "bf16":
        spec["train.precision"] = "fp16"  # what the server plans for it, as TAO does
    said = command("train", spec, results, **environ)
    pace = re.findall(r"([\d.]+) images/s(.*)", said)
    return (float(pace[-1][0]), pace[-1][1]) if pace else (float("nan"), " too few steps for a pace")


def evaluate(base: dict[str, Any], folder: Path, checkpoint: Path, gpus: int) -> dict[str, Any]:
    results = Path(tempfile.mkdtemp(dir=folder))
    spec = {**base, "results_dir": str(results), "evaluate.checkpoint": str(checkpoint)}
    spec |= {"evaluate.num_gpus": gpus, "evaluate.gpu_ids": list(range(gpus))}
    command("evaluate", spec, results)
    found: dict[str, Any] = json.loads((results / "evaluate" / "metrics.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, action="append", help="1 and 2 without it")
    parser.add_argument("--network", choices=["tiny", "large"], action="append", help="both without it")
    parser.add_argument("--batch", type=int, default=8, help="images a GPU")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="a toy network at 64 px, for a machine without GPUs")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    counts = sorted(arguments.gpus or [1, 2])
    gpu.write_split(folder / "train", 16 if arguments.small else gpu.IMAGES)
    gpu.write_split(folder / "val", 5 if arguments.small else 61)  # odd: the last shares are not equal
    for network in ["tiny"] if arguments.small else arguments.network or ["tiny", "large"]:
        base = dotted.flatten(gpu.spec(folder, folder, arguments.batch, arguments.steps, arguments.workers))
        base |= {"model.backbone.swin.type": network, **(SMALL if arguments.small else {})}
        graphed, memory = train(base, folder, 1, "ddp")
        print(f"swin {network}, 1 GPU as it trains by itself: {graphed:.1f} images/s{memory}", flush=True)
        for strategy in ("ddp", "fsdp"):
            single = float("nan")
            for count in counts:
                pace, memory = train(base, folder, count, strategy, **{fast.GRAPH: "0"})
                single = pace if count == 1 else single
                share = f"{pace / single / count:.2f} of linear" if count > 1 else "no graph"
                print(f"swin {network}, {strategy}, {count} GPU: {pace:.1f} images/s{memory}, {share}", flush=True)
        checkpoint = max(folder.glob("*/train/*_latest.pth"), key=lambda path: path.stat().st_mtime)
        alone, together = (evaluate(base, folder, checkpoint, count) for count in (1, counts[-1]))
        print(f"evaluate on 1 and {counts[-1]}: {'equal' if alone == together else 'DIFFERENT'} metrics", flush=True)


if __name__ == "__main__":
    main()
