"""One training step of our network and criterion beside transformers' Mask2Former with its own loss; same weights.

    python benchmarks/engine_cpu.py [--case mini|swin-t] [--steps 10] [--threads 2]

A step is forward, matching, loss, backward and AdamW on the CPU, on random images with 8 targets each: ours in float32
and in bfloat16 (train.precision=bf16), transformers' in float32. They take turns step by step, so that a machine that
slows down slows all; medians are reported, and in brackets how often they go into transformers'. Predictions (one
forward, class logits and masks at stride 4) are measured in the same way. Then each network trains and predicts in a
process of its own, which tells the most memory that it had resident, less what it had before the first step.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from mask2former_mcp.engine import criterion
from mask2former_mcp.engine.criterion import Targets
from mask2former_mcp.engine.model import weights
from mask2former_mcp.engine.model.network import Prediction, build
from mask2former_mcp.spec.experiment import Experiment, load

TARGETS = 8
WARM_UP = 2  # steps of each that are not counted

CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "mini": (
        {
            "backbone": {"swin": {"embed_dim": 48, "depths": [1, 1, 2, 1]}},
            "sem_seg_head": {"num_classes": 7, "convs_dim": 64, "mask_dim": 64, "transformer_enc_layers": 1},
            "mask_former": {"hidden_dim": 64, "num_object_queries": 20, "dec_layers": 4, "dim_feedforward": 256},
        },
        128,
        8,
    ),
    "swin-t": ({"sem_seg_head": {"num_classes": 133}}, 256, 2),
}


def ours(experiment: Experiment, images: Tensor) -> tuple[torch.nn.Module, Callable[[], Prediction]]:
    network = build(experiment).train()
    return network, lambda: network(images)


def theirs(
    experiment: Experiment, images: Tensor, targets: Targets, state: dict[str, Tensor]
) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    model = experiment.model
    swin = SwinConfig(
        embed_dim=model.backbone.swin.embed_dim,
        depths=list(model.backbone.swin.depths),
        num_heads=list(model.backbone.swin.num_heads),
        window_size=model.backbone.swin.window_size,
        drop_path_rate=model.backbone.swin.drop_path_rate,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=model.sem_seg_head.convs_dim,
        mask_feature_size=model.sem_seg_head.mask_dim,
        hidden_dim=model.mask_former.hidden_dim,
        encoder_layers=model.sem_seg_head.transformer_enc_layers,
        decoder_layers=model.mask_former.dec_layers,
        num_attention_heads=model.mask_former.nheads,
        dim_feedforward=model.mask_former.dim_feedforward,
        num_queries=model.mask_former.num_object_queries,
        num_labels=model.sem_seg_head.num_classes,
    )
    network = Mask2FormerForUniversalSegmentation(config).train()
    network.load_state_dict(weights.to_transformers(state), strict=False)
    masks = [torch.nn.functional.interpolate(m[None].float(), scale_factor=4.0)[0] for m in targets.masks]
    labels = [label - 1 for label in targets.labels]
    return network, lambda: network(images, mask_labels=masks, class_labels=labels).loss


def batch(size: int, images: int, classes: int) -> tuple[Tensor, Targets]:
    side = size // 4
    blocks = [torch.randperm((side // 8) ** 2).remainder(TARGETS).view(side // 8, -1) for _ in range(images)]
    segments = torch.stack(blocks).repeat_interleave(8, 1).repeat_interleave(8, 2)
    masks = [torch.stack([image == k for k in range(TARGETS)]) for image in segments]
    labels = [torch.randint(1, classes + 1, (TARGETS,)) for _ in range(images)]
    return torch.randn(images, 3, size, size), Targets(labels, masks, torch.ones(images, side, side, dtype=torch.bool))


def runs_of(case: str) -> dict[str, tuple[torch.nn.Module, Callable[[], Tensor], Callable[[], object]]]:
    """Network, loss and prediction of each contestant."""
    spec, size, images = CASES[case]
    experiment = load("train", {"model": spec})
    pixels, targets = batch(size, images, experiment.model.sem_seg_head.num_classes)
    network, forward = ours(experiment, pixels)
    loss = criterion.build(experiment)
    reference, their_loss = theirs(experiment, pixels, targets, network.state_dict())

    def half() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):  # as the engine trains: the criterion sums in float32
            prediction = forward()
        return loss(prediction, targets).total

    def half_prediction() -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(pixels).mask_logits()

    return {
        "own fp32": (network, lambda: loss(forward(), targets).total, lambda: network(pixels).mask_logits()),
        "own bf16": (network, half, half_prediction),
        "transformers fp32": (reference, their_loss, lambda: reference(pixels)),
    }


def measure(case: str, steps: int) -> None:
    """Prints the medians of one case: steps, then predictions, of all contestants in turn."""
    runs = runs_of(case)
    optimizers = {model: torch.optim.AdamW(model.parameters(), 1e-5, fused=True) for model, _, _ in runs.values()}

    def trained(name: str) -> None:
        model, loss, _ = runs[name]
        optimizers[model].zero_grad()
        loss().backward()
        optimizers[model].step()

    def predicted(name: str) -> None:
        with torch.inference_mode():
            runs[name][2]()

    for what, call in (("a step", trained), ("a prediction", predicted)):
        for model, _, _ in runs.values():
            model.train(what == "a step")
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(steps + WARM_UP):
            for name in runs:
                start = time.perf_counter()
                call(name)
                if turn >= WARM_UP:
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        their_median = medians["transformers fp32"]
        told = ", ".join(f"{name} {value:.3f} s ({their_median / value:.2f}x)" for name, value in medians.items())
        _, size, images = CASES[case]
        print(f"{case}: {size} px, batch {images}, {what}: {told}", flush=True)


def resident(case: str, name: str, training: bool) -> float:
    """MiB that a few steps or predictions of one contestant add to what its process has."""
    model, loss, prediction = runs_of(case)[name]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    before = peak()
    model.train(training)
    for _ in range(WARM_UP):
        if training:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        else:
            with torch.inference_mode():
                prediction()
    return peak() - before


def peak() -> float:
    """MiB that this process has had resident at most; on Linux. (getrusage tells its parent's, if that had more.)"""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def memory(case: str, threads: int) -> None:
    for what in ("training", "prediction"):
        told = []
        for name in ("own fp32", "own bf16", "transformers fp32"):
            command = [sys.executable, __file__, "--case", case, "--threads", str(threads), "--resident", name, what]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            told.append(f"{name} {float(done.stdout):.0f} MiB")
        print(f"{case}: memory that {what} adds: {', '.join(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="which network; both without it")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--resident", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    if arguments.resident:
        name, what = arguments.resident
        print(resident(arguments.case[0], name, what == "training"))
        return
    half = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, bf16 {'in' if half else 'not in'} hardware")
    for case in arguments.case or CASES:
        measure(case, arguments.steps)
        memory(case, arguments.threads)


if __name__ == "__main__":
    main()
