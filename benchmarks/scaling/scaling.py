"""Training and evaluation on several GPUs of one machine: images/s, memory, efficiency, and whether the metrics agree.

    python benchmarks/scaling/scaling.py [--gpus 1 --gpus 2 --gpus 4] [--network tiny --network large] [--batch 8]
    python benchmarks/scaling/scaling.py --small --gpus 1 --gpus 2       # without GPUs: whether the script itself works

Each line is one `mask2former train` on image files (benchmarks/engine/gpu.py writes them), with the same batch a GPU:
DDP beside the whole-step CUDA graph (M2F_STEP_GRAPH=ddp), DDP and FSDP. One GPU is measured twice, as it trains by
itself, with the graph, and without (M2F_STEP_GRAPH=0). Efficiency is images/s over those of one GPU times their number,
by either measure. Then `mask2former evaluate` with 1 and with all GPUs must give equal metrics, and the death of a
process must end the command with its name. NVLink multicast is off.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import gpu

from mask2former_mcp.engine import fast
from mask2former_mcp.spec import dotted

SMALL = gpu.Case(side=64, embed_dim=32, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8))
ENVIRONMENT = {"NCCL_NVLS_ENABLE": "0"}
WAYS = (("ddp beside the graph", "ddp", "ddp"), ("ddp", "ddp", "0"), ("fsdp", "fsdp", "0"))  # strategy, M2F_STEP_GRAPH
PATIENCE_S = 300  # for a training to begin, and for it to end


def call(action: str, spec: dict[str, Any], folder: Path) -> list[str]:
    file = folder / f"{action}.yaml"
    file.write_text(yaml.safe_dump(dotted.unflatten(spec)))
    return [sys.executable, "-m", "mask2former_mcp.engine", action, "-e", str(file)]


def command(action: str, spec: dict[str, Any], folder: Path, **environ: str) -> str:
    """Output of one command in a process of its own. Raises CalledProcessError with it."""
    done = subprocess.run(
        call(action, spec, folder),
        env={**os.environ, **ENVIRONMENT, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{action} failed ({done.returncode}): {done.stdout[-800:]} {done.stderr[-1500:]}")
    return done.stdout


def training(base: dict[str, Any], folder: Path, gpus: int, strategy: str) -> tuple[dict[str, Any], Path]:
    """The spec of a training, and its results folder."""
    results = Path(tempfile.mkdtemp(dir=folder))
    spec = {**base, "results_dir": str(results), "train.num_gpus": gpus, "train.gpu_ids": list(range(gpus))}
    spec["train.distributed_strategy"] = strategy
    if strategy == "fsdp" and spec["train.precision"] == "bf16":
        spec["train.precision"] = "fp16"  # what the server plans for it, as TAO does
    return spec, results


def train(base: dict[str, Any], folder: Path, gpus: int, strategy: str, **environ: str) -> tuple[float, str]:
    """Images/s, and what is said of memory and graphs."""
    said = command("train", *training(base, folder, gpus, strategy), **environ)
    pace = re.findall(r"([\d.]+) images/s(.*)", said)
    graphs = "".join(f", {found}" for found in re.findall(r"^fast path: (.*?)[;:]", said, re.MULTILINE))
    return (float(pace[-1][0]), pace[-1][1] + graphs) if pace else (float("nan"), " (too few steps for a pace)")


def write_images(folder: Path, *, small: bool) -> None:
    """train/ and val/, the latter of an odd number: the last shares are not equal."""
    case = SMALL if small else gpu.Case()
    for name, count in (("train", 16 if small else gpu.FEW), ("val", 5 if small else 61)):
        gpu.write_split(folder / name, case.side, count, count)


def settings(folder: Path, network: str, batch: int, steps: int, workers: int, *, small: bool) -> dict[str, Any]:
    """What all runs of a network have in common, by dotted keys."""
    flat = dotted.flatten(gpu.spec(SMALL if small else gpu.Case(), folder, "train", folder, batch, steps, workers))
    if small:
        return {**flat, "train.precision": "fp32"}
    own = ("model.backbone.swin.embed_dim", "model.backbone.swin.depths", "model.backbone.swin.num_heads")
    return {**{key: value for key, value in flat.items() if key not in own}, "model.backbone.swin.type": network}


def scaling(base: dict[str, Any], folder: Path, network: str, counts: list[int]) -> None:
    """Prints a line for each way and number of GPUs."""
    alone = {}
    for name, environ in (("as it trains by itself", {}), ("no graph", {fast.GRAPH: "0"})):
        alone[name], said = train(base, folder, 1, "ddp", **environ)
        print(f"swin {network}, 1 GPU, {name}: {alone[name]:.1f} images/s{said}", flush=True)
    for way, strategy, graph in WAYS:
        for count in counts:
            if count > 1:
                pace, said = train(base, folder, count, strategy, **{fast.GRAPH: graph})
                shares = ", ".join(f"{pace / one / count:.2f} of linear ({name})" for name, one in alone.items())
                print(f"swin {network}, {count} GPUs, {way}: {pace:.1f} images/s{said}; {shares}", flush=True)


def evaluate(base: dict[str, Any], folder: Path, checkpoint: Path, gpus: int) -> dict[str, float]:
    results = Path(tempfile.mkdtemp(dir=folder))
    spec = {**base, "results_dir": str(results), "evaluate.checkpoint": str(checkpoint)}
    spec |= {"evaluate.num_gpus": gpus, "evaluate.gpu_ids": list(range(gpus))}
    command("evaluate", spec, results)
    found: dict[str, float] = json.loads((results / "evaluate" / "metrics.json").read_text())["overall"]
    return found


def agreement(base: dict[str, Any], folder: Path, gpus: int) -> str:
    checkpoint = max(folder.glob("*/train/*_latest.pth"), key=lambda path: path.stat().st_mtime)
    alone, together = (evaluate(base, folder, checkpoint, count) for count in (1, gpus))
    if alone.keys() != together.keys():
        return f"DIFFERENT metrics: {sorted(alone.keys() ^ together.keys())}"
    largest = max(abs(alone[name] - together[name]) for name in alone)
    return f"{len(alone)} metrics, largest difference {largest:.1e}"


def death(base: dict[str, Any], folder: Path, gpus: int) -> str:
    """Kills the last process of a training under way; what the command says of it."""
    spec, results = training({**base, "train.num_epochs": 1000}, folder, gpus, "ddp")
    status, until = results / "train" / "status.json", time.monotonic() + PATIENCE_S
    environment = {**os.environ, **ENVIRONMENT}
    silent = subprocess.DEVNULL
    with subprocess.Popen(call("train", spec, results), env=environment, stdout=silent, stderr=silent) as started:
        try:
            while not (status.exists() and "loop in progress" in status.read_text()):
                if started.poll() is not None or time.monotonic() > until:
                    return "the training did not begin"
                time.sleep(0.2)
            ranks = {child.environ().get("LOCAL_RANK"): child for child in psutil.Process(started.pid).children()}
            ranks[str(gpus - 1)].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            code = started.wait(PATIENCE_S)
        finally:
            started.kill()
    message = json.loads(status.read_text().splitlines()[-1])["message"]
    return f"exit code {code} after {time.monotonic() - killed:.0f} s: {message}"


def machine() -> str:
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{' + '.join(cards) or 'no GPU'}, {os.cpu_count()} cores, torch {torch.__version__}, {date.today()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, action="append", help="powers of two without it")
    parser.add_argument("--network", choices=["tiny", "large"], action="append", help="both without it")
    parser.add_argument("--batch", type=int, default=8, help="images a GPU")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="a toy network at 64 px, for a machine without GPUs")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    most = torch.cuda.device_count() or 2
    counts = sorted(arguments.gpus or [1 << n for n in range(most.bit_length())])
    print(f"{machine()}; batch {arguments.batch} a GPU, {arguments.steps} steps", flush=True)
    small = arguments.small
    write_images(folder, small=small)
    for network in ["tiny"] if small else arguments.network or ["tiny", "large"]:
        base = settings(folder, network, arguments.batch, arguments.steps, arguments.workers, small=small)
        scaling(base, folder, network, counts)
        print(f"evaluate on 1 and {counts[-1]}: {agreement(base, folder, counts[-1])}", flush=True)
    print(f"one of {counts[-1]} killed: {death(base, folder, counts[-1])}", flush=True)


if __name__ == "__main__":
    main()
