"""Stands for `mask2former ACTION -e SPEC` in tests of jobs: writes status.json the way ours or TAO's engine does, and
misbehaves as the spec's `fake` section says. Standard library and yaml only, so that it starts fast."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml


class Asked(Exception):
    pass


def asked(number: int, frame: object) -> None:
    raise Asked


def main() -> int:
    action, spec_file = sys.argv[1], Path(sys.argv[3])
    spec = yaml.safe_load(spec_file.read_text())
    fake = spec.get("fake", {})
    folder = Path(spec["results_dir"]) / action
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "trainer.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (folder / "TWO_TRAINERS").write_text("at once\n")
    with (folder / "starts.txt").open("a") as stream:
        stream.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\n")
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    if fake.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, asked)
    if fake.get("grandchild"):
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (folder / "grandchild.txt").write_text(str(worker.pid))
    if fake.get("print_spec"):
        print(spec_file.read_text(), flush=True)
    try:
        return run(action, spec, fake, folder)
    except Asked:
        line(folder, "FAILURE", f"{action.capitalize()} interrupted by SIGTERM.")
        return 143


def run(action: str, spec: dict[str, Any], fake: dict[str, Any], folder: Path) -> int:
    line(folder, "STARTED", f"Starting Mask2Former {action}.")
    print(f"hello from {action}", flush=True)
    time.sleep(fake.get("start_s", 0))
    if action == "train":
        train(spec["train"], fake, folder)
    elif "kpi" in fake:
        line(folder, "RUNNING", "Test metrics generated.", kpi=fake["kpi"])
    if fields := fake.get("says"):
        line(folder, "RUNNING", **fields)
    if text := fake.get("stderr"):
        print(text, file=sys.stderr, flush=True)
    if text := fake.get("failure"):
        line(folder, "FAILURE", text.replace("$KEY", spec.get("encryption_key", "")))
    if number := fake.get("signal"):
        os.kill(os.getpid(), number)
    for name in fake.get("writes", ()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
    if not fake.get("no_done"):
        # TAO's container writes RUNNING, not SUCCESS, at the end.
        line(folder, fake.get("done_status", "SUCCESS"), f"{action.capitalize()} finished successfully.")
    return int(fake.get("exit", 0))


def train(section: dict[str, Any], fake: dict[str, Any], folder: Path) -> None:
    first = 0
    if resumed := section.get("resume_training_checkpoint_path"):
        first = int(Path(resumed).name.split("_")[2]) + 1
        line(folder, "RUNNING", f"Resuming training from checkpoint: {resumed}")
    epochs = section["num_epochs"]
    if fake.get("style") == "tao":
        line(folder, "RUNNING", "Eval metrics generated.", kpi={"mIoU": 0.001})  # Lightning's sanity check
        line(folder, "RUNNING", "Starting Training Loop.")
    for epoch in range(first, epochs):
        time.sleep(fake.get("epoch_s", 0))
        if not fake.get("no_checkpoint"):
            checkpoint(folder / f"model_epoch_{epoch:03d}_step_{epoch * 10 + 9:05d}.pth")
        mean = 0.1 * (epoch + 1)
        kpi = {"mIoU": float("nan") if epoch in fake.get("nan", ()) else mean, "val_loss": 1 - mean}
        if fake.get("style") == "tao":
            line(folder, "RUNNING", "Eval metrics generated.", kpi=kpi)
            loop = {"epoch": epoch, "max_epoch": epochs - 1, "eta": "0:00:07"}
            line(folder, "RUNNING", "Training loop in progress", kpi=kpi, **loop)
            line(folder, "RUNNING", "Train metrics generated.", kpi={"train_loss": 2 - mean})
        else:
            line(folder, "RUNNING", "Training loop in progress", epoch=epoch, progress=(epoch + 1) / epochs, eta_s=7.0)
            line(folder, "RUNNING", "Eval metrics generated.", kpi=kpi, epoch=epoch)
        if epoch == fake.get("hang_at"):
            (folder / "hanging").touch()
            time.sleep(600)


def checkpoint(path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("archive/data.pkl", b"weights" * 100)
    temporary.replace(path)


def line(folder: Path, status: str, message: str, **fields: Any) -> None:
    value = {"date": "1/2/2026", "time": "3:4:5", "status": status, "verbosity": "INFO", "message": message, **fields}
    with (folder / "status.json").open("a") as stream:
        stream.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    sys.exit(main())
