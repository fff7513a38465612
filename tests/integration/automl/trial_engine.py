"""Stands for `mask2former ACTION -e SPEC` in tests of studies: an epoch is a blink, mIoU follows from the rate.

    trial_engine.py BEHAVIOUR.json ACTION -e SPEC

BEHAVIOUR is read anew at each start: {"epoch_s": seconds an epoch takes, "best_lr": where mIoU is highest,
"fails": [learning rates that crash], "fail_all": crash always, "silent": never measure,
"meet": how many trainings must run at once before any of them ends}.
"""

import fcntl
import json
import math
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml

MEETING_S = 60.0


class Asked(Exception):
    pass


def asked(number: int, frame: object) -> None:
    raise Asked


def main() -> int:
    behaviour = json.loads(Path(sys.argv[1]).read_text())
    action, spec = sys.argv[2], yaml.safe_load(Path(sys.argv[4]).read_text())
    folder = Path(spec["results_dir"]) / action
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "trainer.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (folder / "TWO_TRAINERS").write_text("at once\n")
    with (folder / "starts.txt").open("a") as stream:
        stream.write(f"{os.getpid()} {time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    print(f"{action} begins", flush=True)
    signal.signal(signal.SIGTERM, asked)
    try:
        line(folder, "STARTED", f"Starting Mask2Former {action}.")
        if action == "train":
            train(spec["train"], behaviour, folder)
        else:
            line(folder, "RUNNING", "Test metrics generated.", kpi={"mIoU": 0.5, "PQ": 0.4})
    except Asked:
        line(folder, "FAILURE", f"{action.capitalize()} interrupted by SIGTERM.")
        return 143
    finally:
        with (folder / "ends.txt").open("a") as stream:
            stream.write(f"{os.getpid()} {time.time()}\n")
    line(folder, "SUCCESS", f"{action.capitalize()} finished successfully.")
    return 0


def train(section: dict[str, Any], behaviour: dict[str, Any], folder: Path) -> None:
    rate = section["optim"]["lr"]
    if rate in behaviour.get("fails", ()) or behaviour.get("fail_all"):
        line(folder, "FAILURE", "out of memory, says the test")
        sys.exit(1)
    first = 0
    if resumed := section.get("resume_training_checkpoint_path"):
        first = int(Path(resumed).name.split("_")[2]) + 1
    if expected := behaviour.get("meet"):
        meet(expected)
    epochs = section["num_epochs"]
    top = 0.8 * math.exp(-((math.log10(rate / behaviour.get("best_lr", 4e-4))) ** 2))
    for epoch in range(first, epochs):
        time.sleep(behaviour.get("epoch_s", 0.02))
        checkpoint(folder / f"model_epoch_{epoch:03d}_step_{epoch * 10 + 9:05d}.pth")
        mean = top * (1 - math.exp(-3 * (epoch + 1) / epochs))
        line(folder, "RUNNING", "Training loop in progress", epoch=epoch, progress=(epoch + 1) / epochs)
        if not behaviour.get("silent"):
            line(folder, "RUNNING", "Eval metrics generated.", kpi={"mIoU": mean, "PQ": mean / 2}, epoch=epoch)


def meet(expected: int) -> None:
    """Return when `expected` trainings have come here: each waits for the others, so they run at once. Crash if nobody
    comes: where trainings run one after the other, the first waits in vain."""
    place = Path(sys.argv[1]).with_name("meeting")
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    deadline = time.monotonic() + MEETING_S
    while len(list(place.iterdir())) < expected:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{expected} trainings never ran at once")
        time.sleep(0.02)


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
