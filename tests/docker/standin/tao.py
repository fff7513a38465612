#!/usr/bin/env python3
"""Stands for the `mask2former` command of NVIDIA's TAO images: its files, its exit codes and its quirks, no network.

    mask2former ACTION -e SPEC

Standard library and PyYAML only. STANDIN_IMAGE (`pyt` or `deploy`) says which image it is. The spec's `model_name`,
a key that changes nothing for TAO, chooses quirks, separated by spaces: `oom`, `nan=1`, `epoch_s=0.5` ...; each is
described where it is acted out. Everything else is what the images do at all times: they never write SUCCESS (the
deploy image does), repeat the last kpi on every later line, name no epoch beside it, append to status.json, draw
progress bars, resume unasked in a folder that holds a checkpoint, refuse to write over an ONNX file, end with 0 when
they are interrupted, and put the whole spec into experiment.yaml.
"""

import json
import math
import os
import shutil
import signal
import sys
import time
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

PYT = ("train", "evaluate", "inference", "export", "quantize")
DEPLOY = ("gen_trt_engine", "evaluate", "inference")
STEPS = 10  # per epoch
BEST_LR = 2e-4


class Status:
    """status.json, one object a line. The kpi is sticky: once given, every later line repeats it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "status.json").open("a")
        self.kpi: dict[str, float] = {}

    def line(self, status: str, message: str, kpi: dict[str, float] | None = None, **fields: Any) -> None:
        now = datetime.now()
        self.kpi = kpi or self.kpi
        value = {
            "date": f"{now.month}/{now.day}/{now.year}", "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": status, "verbosity": "INFO", "message": message, **fields,
        }  # fmt: skip
        self.file.write(json.dumps({**value, "kpi": self.kpi} if self.kpi else value) + "\n")  # NaN as a literal
        self.file.flush()


def main() -> int:
    image = os.environ.get("STANDIN_IMAGE", "pyt")
    actions = DEPLOY if image == "deploy" else PYT
    if len(sys.argv) < 2 or sys.argv[1] not in actions:
        print(f"usage: mask2former {{{','.join(actions)}}} -e SPEC", file=sys.stderr)
        return 2
    if "-e" not in sys.argv[:-1]:
        print("The subtask requires the following argument: -e/--experiment_spec_file", file=sys.stderr)
        return 1
    action, spec_file = sys.argv[1], Path(sys.argv[sys.argv.index("-e") + 1])
    spec = yaml.safe_load(spec_file.read_text())
    quirks = dict(word.partition("=")[::2] for word in str(spec.get("model_name", "")).split())
    os.environ["TAO_VISIBLE_DEVICES"] = "0"
    if "WORLD_SIZE" in os.environ or "rewrite" in quirks:  # the entry point rewrites the spec that it was given
        spec.setdefault(action, {})["num_nodes"] = int(os.environ.get("WORLD_SIZE", "1"))
        spec[action]["num_gpus"] = int(quirks.get("rewrite") or os.environ.get("NUM_GPU_PER_NODE", "1"))
        spec_file.write_text(yaml.safe_dump(spec))
    if "tell" in quirks:  # prints all that it knows
        print(json.dumps({"environ": dict(os.environ), "argv": sys.argv, "uid": os.getuid(), "spec": spec}))
    name = f"trt_{action}" if image == "deploy" and action != "gen_trt_engine" else action
    folder = Path((spec.get(action) or {}).get("results_dir") or Path(spec["results_dir"]) / name)
    status = Status(folder)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(spec))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status.line("STARTED", f"Starting Mask2Former {action}.")
    try:
        run = {"train": train, "evaluate": evaluate, "inference": inference, "export": export, "quantize": quantize}
        (deploy if image == "deploy" else run[action])(action, spec, quirks, folder, status)
    except KeyboardInterrupt:  # reported, and not raised again
        status.line("FAILURE", "User/System interruption")
        print("Execution status: PASS")
        return 0
    except Exception:
        print("Execution status: FAIL")
        raise
    status.line("SUCCESS" if image == "deploy" else "RUNNING", f"{action.capitalize()} finished successfully.")
    print("Execution status: PASS", flush=True)
    return 0


# -- the pyt image --


def train(action: str, spec: dict[str, Any], quirks: dict[str, str], folder: Path, status: Status) -> None:
    section = spec["train"]
    epochs = int(section["num_epochs"])
    # Not caught by the image's own handler: a traceback and no FAILURE line.
    assert section["checkpoint_interval"] <= epochs, "train.checkpoint_interval must be at most num_epochs"
    images = ((spec.get("dataset") or {}).get("train") or {}).get("img_dir", "/data/0/images")
    first = resume(section.get("resume_training_checkpoint_path") or "", folder, status)
    rate = float(section["optim"]["lr"])
    top = 0.8 * math.exp(-(math.log10(rate / BEST_LR) ** 2))
    status.line("RUNNING", "Eval metrics generated.", {"val_loss": 9.0, "mIoU": 0.001, "ACC_all": 0.01})  # sanity check
    status.line("RUNNING", "Starting Training Loop.")
    for epoch in range(first, epochs):
        time.sleep(float(quirks.get("epoch_s", 0.02)))
        print(f"\rEpoch {epoch}:  50%|##  | 5/10\rEpoch {epoch}: 100%|####| 10/10", flush=True)  # its progress bar
        act_up(quirks, epoch, first, folder, images)
        checkpoint(folder, epoch, (epoch + 1) * STEPS)
        mean = float("nan") if quirks.get("nan") == str(epoch) else top * (1 - math.exp(-3 * (epoch + 1) / epochs))
        status.line("RUNNING", "Eval metrics generated.", {"val_loss": 1 - mean, "mIoU": mean, "ACC_all": 0.9})
        loop = {"epoch": epoch, "step": (epoch + 1) * STEPS, "max_epoch": epochs - 1, "max_step": epochs * STEPS}
        status.line("RUNNING", "Training loop in progress", **loop, eta="0:00:07", time_per_epoch="0:00:01")
        status.line("RUNNING", "Train metrics generated.", {"train_loss": 2 - (0 if math.isnan(mean) else mean)})
    if "silent" in quirks:  # ends with 0 and does not say that it finished
        os._exit(0)
    status.line("RUNNING", "Training loop complete.")


def resume(path: str, folder: Path, status: Status) -> int:
    """The first epoch to train. Without being asked it goes on from the newest checkpoint of its own folder."""
    latest = folder / "mask2former_model_latest.pth"
    source = path or (str(latest) if latest.exists() else "")
    if not source:
        return 0
    with zipfile.ZipFile(source) as archive:
        first = int(archive.read("archive/next"))
    status.line("RUNNING", f"Resuming training from checkpoint: {source}")
    return first


def act_up(quirks: dict[str, str], epoch: int, first: int, folder: Path, images: str) -> None:
    """Misbehave in an epoch, `oom=1` in the second one. A name that ends in `-once` only on a run from the start."""
    wanted = {name.removesuffix("-once") for name, value in quirks.items()
              if (not value or value == str(epoch)) and not (name.endswith("-once") and first)}  # fmt: skip
    if "hang" in wanted:
        (folder / "hanging").touch()
        time.sleep(600)
    if "interrupt" in wanted:
        raise KeyboardInterrupt
    if "kill" in wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    if "die" in wanted:  # outside of a container, as one ends that somebody removes: nobody learns the code
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    words = next((LAST_WORDS[name] for name in LAST_WORDS if name in wanted), None)
    if words is not None:
        checkpoint(folder, epoch, epoch * STEPS + 3)  # the exception's own, from the middle of the epoch
        print("\n".join(words).format(images=images), file=sys.stderr, flush=True)
        print("Execution status: FAIL", flush=True)
        os._exit(1)


NOISE = tuple(
    f"[rank{rank}]:[E1124 ProcessGroupNCCL.cpp:629] [Rank {rank}] Watchdog caught collective operation timeout:"
    " WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for 1800012 milliseconds before timing out."
    for rank in range(2, 8)
)
LAST_WORDS: dict[str, tuple[str, ...]] = {
    "oom": (
        "[rank1]: Traceback (most recent call last):",
        "[rank1]: torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        *NOISE,
        "torch.distributed.DistBackendError: NCCL error: remote process exited",
    ),
    "assert": (
        "../aten/src/ATen/native/cuda/Loss.cu:250: nll_loss_forward: block: [0,0,0] Assertion `t < n_classes` failed.",
        "RuntimeError: CUDA error: device-side assert triggered",
        *NOISE,
    ),
    "bug": (
        "[rank1]: ValueError: too many values to unpack (expected 2)",
        *NOISE,
        "DistBackendError: NCCL error in: x",
    ),
    "disk": ("OSError: [Errno 28] No space left on device", *NOISE),
    "missing": ("FileNotFoundError: [Errno 2] No such file or directory: '{images}/0007.jpg'",),
    "xid": ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.", "RuntimeError: CUDA error"),
    "nccl": (*NOISE, "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970"),
}


def checkpoint(folder: Path, epoch: int, step: int) -> None:
    """A whole epoch's, or one from the middle, with which that epoch goes on."""
    path = folder / f"model_epoch_{epoch:03d}_step_{step:05d}.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/epoch", str(epoch))
        archive.writestr("archive/next", str(epoch + 1 if step == (epoch + 1) * STEPS else epoch))
        archive.writestr("archive/data.pkl", b"weights" * 100)
    latest = folder / "mask2former_model_latest.pth"
    latest.unlink(missing_ok=True)
    latest.symlink_to(path.name)


def evaluate(action: str, spec: dict[str, Any], quirks: dict[str, str], folder: Path, status: Status) -> None:
    with zipfile.ZipFile(spec["evaluate"]["checkpoint"]) as archive:
        epoch = int(archive.read("archive/epoch"))
    Path(spec["dataset"]["label_map"]).read_bytes()
    next(Path(spec["dataset"]["val"]["img_dir"]).iterdir())
    status.line("RUNNING", "Test metrics generated.", {"val_loss": 1.0, "mIoU": 0.1 * (epoch + 1), "ACC_all": 0.9})


def inference(action: str, spec: dict[str, Any], quirks: dict[str, str], folder: Path, status: Status) -> None:
    Path(spec["dataset"]["label_map"]).read_bytes()
    for picture in Path(spec["dataset"]["test"]["img_dir"]).iterdir():
        shutil.copyfile(picture, folder / f"{picture.stem}.jpg")


def export(action: str, spec: dict[str, Any], quirks: dict[str, str], folder: Path, status: Status) -> None:
    output = Path(spec["export"]["onnx_file"])
    assert not output.exists(), f"Default onnx file {output} already exists"
    Path(spec["export"]["checkpoint"]).read_bytes()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(b"onnx" * 100)
    if "xid" in quirks and not (output.parent / "went-wrong").exists():  # after the file was written, the first time
        (output.parent / "went-wrong").touch()
        print(LAST_WORDS["xid"][0], file=sys.stderr, flush=True)
        os._exit(1)


def quantize(action: str, spec: dict[str, Any], quirks: dict[str, str], folder: Path, status: Status) -> None:
    Path(spec["quantize"]["model_path"]).read_bytes()
    (folder / f"quantized_model_{spec['quantize']['backend']}.pth").write_bytes(b"bare weights")


# -- the deploy image --


def deploy(action: str, spec: dict[str, Any], quirks: dict[str, str], folder: Path, status: Status) -> None:
    if action == "gen_trt_engine":
        Path(spec[action]["onnx_file"]).read_bytes()
        output = Path(spec[action]["trt_engine"])
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(b"engine" * 100)
        return
    Path(spec[action]["trt_engine"]).read_bytes()
    Path(spec["dataset"]["label_map"]).read_bytes()
    if action == "evaluate":  # the numbers are in the log only
        print("Evaluation metrics\n==================\nmIOU: 0.43\nAcc: 0.91\nFinished evaluation.", flush=True)
        return
    for picture in Path(spec["dataset"]["test"]["img_dir"]).iterdir():
        shutil.copyfile(picture, folder / f"{picture.name[:-4]}.jpg")


if __name__ == "__main__":
    sys.exit(main())
