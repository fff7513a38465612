"""`mask2former train` on a tiny network: what it leaves, that it learns, how it resumes, and how it fails."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mask2former_mcp.engine import checkpoint, device, interruption, optim, resume, session
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]
WAIT_S = 60


def train(folder: Path, spec: dict[str, Any], *overrides: str) -> int:
    """Runs in this process; the exit code."""
    folder.mkdir(exist_ok=True)
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    return session.run("train", file, [f"results_dir={folder}", *overrides])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train" / "status.json").read_text().splitlines()]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "train" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def points(folder: Path) -> dict[str, list[int]]:
    """The steps that TensorBoard draws of two of its curves."""
    events = EventAccumulator(str(folder / "train" / "lightning_logs" / "version_1")).Reload()
    return {name: [point.step for point in events.Scalars(name)] for name in ("epoch/mIoU", "train/loss")}


def test_a_run_leaves_what_the_contract_says(tiny: Spec, tmp_path: Path) -> None:
    assert train(tmp_path, tiny(train__num_epochs=3, train__checkpoint_interval=2, encryption_key="secret")) == 0
    folder = tmp_path / "train"
    assert sorted(p.name for p in folder.glob("*.pth")) == [
        "mask2former_model_latest.pth",
        "model_epoch_001_step_00008.pth",
        "model_epoch_002_step_00012.pth",  # the last epoch always
    ]
    assert os.readlink(folder / "mask2former_model_latest.pth") == "model_epoch_002_step_00012.pth"
    assert yaml.safe_load((folder / "experiment.yaml").read_text())["encryption_key"] == "***"
    assert list((folder / "lightning_logs" / "version_1").glob("events.*"))
    assert (folder / "validation_epoch_002.png").stat().st_size > 1000
    content = torch.load(folder / "model_epoch_001_step_00008.pth", weights_only=True)
    assert content["epoch"] == 1
    assert content["global_step"] == 8
    others = {name for name in content["state_dict"] if not name.startswith("model.")}
    assert others == {checkpoint.LOSS_WEIGHTS}
    assert "secret" not in json.dumps(content["hyper_parameters"])
    table = rows(tmp_path)
    assert [row["epoch"] for row in table] == ["0", "1", "2"]
    assert all(float(row[name]) >= 0 for row in table for name in ("train_loss", "val_loss", "mIoU", "PQ", "lr"))
    assert content["metrics"]["mIoU"] == pytest.approx(float(table[1]["mIoU"]), rel=1e-4)


def test_status_lines_tell_the_run_in_order(tiny: Spec, tmp_path: Path) -> None:
    assert train(tmp_path, tiny(train__num_epochs=2)) == 0
    told = lines(tmp_path)
    assert told[0]["status"] == "STARTED"
    assert told[0]["message"] == "Starting Mask2Former train."
    assert told[-1]["status"] == "SUCCESS"
    assert told[-1]["message"] == "Train finished successfully."
    assert [x["message"] for x in told if "metrics" in x["message"]] == [
        "Train metrics generated.",
        "Eval metrics generated.",
    ] * 2
    measured = [x for x in told if x["message"] == "Eval metrics generated."]
    assert {"mIoU", "ACC_all", "val_loss", "PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "AP", "AP50"} <= set(
        measured[0]["kpi"]
    )
    assert [x["epoch"] for x in measured] == [0, 1]
    assert all("kpi" not in x for x in told if x["message"] == "Training loop in progress")
    loop = [x for x in told if x["message"] == "Training loop in progress"]
    assert loop[-1]["progress"] == 1.0
    assert loop[-1]["step"] == 8
    assert loop[-1]["eta_s"] < 60


def test_it_learns(tiny: Spec, tmp_path: Path) -> None:
    spec = tiny(train__num_epochs=25, train__validation_interval=25, train__checkpoint_interval=25)
    assert train(tmp_path, spec, "train.optim.lr_scheduler=Warmuppoly", "train.optim.lr=3e-3") == 0
    table = rows(tmp_path)
    assert float(table[-1]["train_loss"]) < 0.5 * float(table[0]["train_loss"])
    assert float(table[-1]["mIoU"]) > 0.4
    assert all(row["mIoU"] == "" for row in table[:-1])


@pytest.mark.parametrize(
    ("format", "mode", "measured", "absent"),
    [("coco", "instance", {"AP"}, {"PQ", "mIoU"}), ("ade", "semantic", {"mIoU", "ACC_all"}, {"PQ", "AP"})],
)
def test_the_other_formats_train_and_measure_what_they_can(
    tiny: Spec, tmp_path: Path, format: str, mode: str, measured: set[str], absent: set[str]
) -> None:
    assert train(tmp_path, tiny(format, model__mode=mode, train__num_epochs=1)) == 0
    kpi = next(x for x in lines(tmp_path) if x["message"] == "Eval metrics generated.")["kpi"]
    assert measured <= set(kpi)
    assert not absent & set(kpi)


def test_ade_learns_and_evaluates_to_the_same_numbers(tiny: Spec, tmp_path: Path) -> None:
    spec = tiny("ade", model__mode="semantic", train__num_epochs=20, train__validation_interval=20)
    fast = ("train.optim.lr_scheduler=Warmuppoly", "train.optim.lr=3e-3", "train.checkpoint_interval=20")
    assert train(tmp_path, spec, *fast) == 0
    trained = rows(tmp_path)[-1]
    assert float(trained["mIoU"]) > 0.4
    latest = tmp_path / "train" / checkpoint.LATEST
    more = [f"results_dir={tmp_path}", f"evaluate.checkpoint={latest}", "dataset.val.batch_size=3"]
    assert session.run("evaluate", tmp_path / "spec.yaml", more) == 0
    content = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())
    assert content["overall"]["mIoU"] == pytest.approx(float(trained["mIoU"]), abs=0.01)
    assert {row["category_id"] for row in content["per_class"]} == {3, 5, 9}


def test_images_without_any_annotation_train(tiny: Spec, shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "train" / "instances.json").read_text())
    file = tmp_path / "few.json"
    file.write_text(json.dumps({**content, "annotations": [a for a in content["annotations"] if a["image_id"] == 8]}))
    spec = tiny("coco", model__mode="instance", train__num_epochs=1, dataset__train__instance_json=str(file))
    assert train(tmp_path, spec) == 0
    assert float(rows(tmp_path)[0]["train_loss"]) > 0


def test_fewer_queries_than_objects_train(tiny: Spec, tmp_path: Path) -> None:
    assert train(tmp_path, tiny(train__is_dry_run=True, model__mask_former__num_object_queries=2)) == 0


def test_gradients_scaled_for_half_precision_are_clipped_to_their_true_norm() -> None:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
    fabric = Fabric(accelerator="cpu", devices=1, plugins=precision)
    plain = torch.nn.Linear(4, 3)
    optimizer = optim.optimizer(plain, load("train", {}).train.optim)
    model, stepper = fabric.setup(plain, optimizer)
    before = plain.weight.detach().clone()
    fabric.backward((model(torch.ones(2, 4)) * 10).sum())
    device.clip_gradients(fabric, model, optimizer, 0.1)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]))
    assert float(norm) == pytest.approx(0.1, rel=1e-3)
    stepper.step()
    assert 0 < float((plain.weight.detach() - before).abs().max()) < 1e-3


def test_a_second_signal_ends_at_once_and_keeps_nothing_half_done() -> None:
    with interruption.deferred() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.signal_number == signal.SIGTERM
        with pytest.raises(interruption.AtOnce):
            os.kill(os.getpid(), signal.SIGTERM)


def start(folder: Path, spec: dict[str, Any], *overrides: str) -> "subprocess.Popen[bytes]":
    """A real child process, in a group of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "mask2former_mcp.engine", "train", "-e", str(folder / "spec.yaml")]
    return subprocess.Popen([*command, f"results_dir={folder}", *overrides], start_new_session=True)


def wait_for(folder: Path, message: str) -> None:
    status, end = folder / "train" / "status.json", time.monotonic() + WAIT_S
    while not (status.exists() and message in status.read_text()):
        assert time.monotonic() < end, f"no line {message!r}"
        time.sleep(0.02)


def test_a_run_that_was_terminated_resumes_to_the_same_curve(tiny: Spec, tmp_path: Path) -> None:
    spec = tiny(train__num_epochs=6, dataset__train__num_workers=1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole, spec) == 0
    child = start(broken, spec)
    try:
        wait_for(broken, "Training loop in progress")
        os.killpg(child.pid, signal.SIGTERM)  # the whole group, as a job's cancellation does: workers get it too
        assert child.wait(WAIT_S) == 143
    finally:
        child.kill()
    assert lines(broken)[-1]["status"] == "FAILURE"
    assert "interrupted" in lines(broken)[-1]["message"]
    latest = broken / "train" / checkpoint.LATEST
    step = checkpoint.load(latest)["global_step"]
    assert 0 < step < 24
    assert train(broken, spec, f"train.resume_training_checkpoint_path={latest}") == 0
    assert any("Resuming training from checkpoint" in x["message"] for x in lines(broken))
    first, second = ([{k: v for k, v in row.items() if k != "seconds"} for row in rows(f)] for f in (whole, broken))
    assert first == second
    ends = [checkpoint.load(f / "train" / checkpoint.LATEST)["state_dict"] for f in (whole, broken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_resuming_from_an_epoch_drops_later_rows_and_repeats_them(tiny: Spec, tmp_path: Path) -> None:
    spec = tiny(train__num_epochs=3)
    assert train(tmp_path, spec) == 0
    before, drawn = rows(tmp_path), points(tmp_path)
    first = tmp_path / "train" / "model_epoch_000_step_00004.pth"
    assert train(tmp_path, spec, f"train.resume_training_checkpoint_path={first}") == 0
    after = rows(tmp_path)
    assert points(tmp_path) == drawn == {"epoch/mIoU": [4, 8, 12], "train/loss": [12]}
    assert [row["val_loss"] for row in after] == [row["val_loss"] for row in before]
    assert train(tmp_path, spec, f"train.resume_training_checkpoint_path={first}", "train.num_epochs=4") == 0
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]


def test_a_run_that_ended_before_its_validation_makes_up_for_it(tiny: Spec, tmp_path: Path) -> None:
    spec = tiny(train__num_epochs=2, train__checkpoint_interval=4, train__checkpoint_interval_unit="step")
    assert train(tmp_path, spec) == 0
    before = rows(tmp_path)
    last_step = tmp_path / "train" / "model_epoch_000_step_00004.pth"  # written before the epoch was validated
    assert checkpoint.load(last_step)["metrics"] == {}
    assert train(tmp_path, spec, f"train.resume_training_checkpoint_path={last_step}") == 0
    assert points(tmp_path)["epoch/mIoU"] == [4, 8]
    assert [row["mIoU"] for row in rows(tmp_path)] == [row["mIoU"] for row in before]
    assert [row["train_loss"] for row in rows(tmp_path)] == [row["train_loss"] for row in before]


def test_a_folder_with_another_runs_checkpoints_is_refused(tiny: Spec, tmp_path: Path) -> None:
    assert train(tmp_path, tiny(train__is_dry_run=True)) == 0
    assert train(tmp_path, tiny(train__is_dry_run=True)) == 1
    assert "holds 1 checkpoints of another run" in lines(tmp_path)[-1]["message"]


def test_weights_without_a_run_cannot_be_resumed_but_fine_tuned(tiny: Spec, tmp_path: Path) -> None:
    assert train(tmp_path / "a", tiny(train__is_dry_run=True)) == 0
    content = checkpoint.load(tmp_path / "a" / "train" / checkpoint.LATEST)
    weights = tmp_path / "weights.pth"
    torch.save({"state_dict": content["state_dict"]}, weights)
    dry = tiny(train__is_dry_run=True)
    assert train(tmp_path / "b", dry, f"train.resume_training_checkpoint_path={weights}") == 1
    assert "pretrained_model_path" in lines(tmp_path / "b")[-1]["message"]
    more = "model.sem_seg_head.num_classes=5"
    assert train(tmp_path / "c", dry, f"train.pretrained_model_path={weights}", more) == 0
    assert any(x["message"].startswith("Loaded ") for x in lines(tmp_path / "c"))


def test_a_loss_that_is_not_a_number_fails_with_the_files_of_its_batch(tiny: Spec, tmp_path: Path) -> None:
    assert train(tmp_path / "a", tiny(train__is_dry_run=True)) == 0
    content = checkpoint.load(tmp_path / "a" / "train" / checkpoint.LATEST)
    broken = {
        name: value.fill_(float("nan")) if "mask_embed" in name else value
        for name, value in content["state_dict"].items()
    }
    torch.save({"state_dict": broken}, tmp_path / "nan.pth")
    assert train(tmp_path / "b", tiny(), f"train.pretrained_model_path={tmp_path / 'nan.pth'}") == 1
    last = lines(tmp_path / "b")[-1]
    assert last["status"] == "FAILURE"
    assert "the loss is nan" in last["message"]
    assert ".png" in last["message"]


def test_weights_that_are_not_numbers_are_never_saved(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    model = torch.nn.Linear(2, 2)
    settings = load("train", {}).train.optim
    optimizer = optim.optimizer(model, settings)
    schedule = optim.schedule(optimizer, settings, steps_per_epoch=1, total_steps=1)
    parts = {"fabric": fabric, "model": model, "optimizer": optimizer, "schedule": schedule, "hyper_parameters": {}}
    state = resume.State(seed=0, steps=1, images=1, step=1)
    resume.save(tmp_path, state, **parts)
    torch.nn.init.constant_(model.bias, float("nan"))  # the last step did it, and no loss came after
    state.step = 2
    with pytest.raises(FloatingPointError, match=r"not finite after step 2 \(first: bias\)"):
        resume.save(tmp_path, state, **parts)
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["global_step"] == 1


def test_frozen_modules_stay_and_unknown_ones_are_skipped(tiny: Spec, tmp_path: Path) -> None:
    spec = tiny(train__num_epochs=2, train__freeze=["backbone", "no_such_module"])
    assert train(tmp_path, spec) == 0
    told = lines(tmp_path)
    assert any(x["status"] == "RUNNING" and "backbone" in x["message"] for x in told)
    assert any(x["status"] == "SKIPPED" and "no_such_module" in x["message"] for x in told)
    first, second = (
        checkpoint.load(tmp_path / "train" / f"model_epoch_{name}.pth")["state_dict"]
        for name in ("000_step_00004", "001_step_00008")
    )
    changed = {name.split(".")[1] for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"sem_seg_head"}


def test_bf16_trains_on_a_cpu_and_fp16_says_why_not(tiny: Spec, tmp_path: Path) -> None:
    assert train(tmp_path / "bf16", tiny(train__precision="bf16", train__is_dry_run=True)) == 0
    if not torch.cuda.is_available():
        assert train(tmp_path / "fp16", tiny(train__precision="fp16")) == 1
        assert "bf16" in lines(tmp_path / "fp16")[-1]["message"]


def test_bad_data_still_starts_and_fails_in_the_status_file(tiny: Spec, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.json")
    assert train(tmp_path, tiny(dataset__train__panoptic_json=missing)) == 1
    told = lines(tmp_path)
    assert [x["status"] for x in told] == ["STARTED", "FAILURE"]
    assert "none.json" in told[-1]["message"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_whoever_loads_it(tiny: Spec, shapes: Path, tmp_path: Path, workers: int) -> None:
    images = tmp_path / "images"
    shutil.copytree(shapes / "train" / "images", images)
    (images / "005.png").write_bytes(b"cut off")
    spec = tiny(dataset__train__img_dir=str(images), dataset__train__num_workers=workers)
    assert train(tmp_path, spec) == 1
    message = lines(tmp_path)[-1]["message"]
    assert "005.png: not a readable image" in message
    assert "Traceback" not in message


def test_a_training_that_waits_for_its_images_says_so(
    tiny: Spec, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side = 1600  # of images that take longer to read than the tiny network to learn from
    for part in ("images", "panoptic"):
        (tmp_path / part).mkdir()
        for file in (shapes / "train" / part).iterdir():
            with Image.open(file) as image:
                image.resize((side, side), Image.Resampling.NEAREST).save(tmp_path / part / file.name)
    content = json.loads((shapes / "train" / "panoptic.json").read_text())
    for entry in content["images"]:
        entry |= {"width": side, "height": side}
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    paths = {"img_dir": "images", "panoptic_dir": "panoptic", "panoptic_json": "panoptic.json"}
    changes = {f"dataset__train__{key}": str(tmp_path / name) for key, name in paths.items()}
    assert train(tmp_path / "run", tiny(**changes, train__num_epochs=1)) == 0
    assert re.search(r"images/s \(waited \d+% of the time for data: raise dataset\.train", capsys.readouterr().out)


def test_of_a_single_step_no_pace_is_told_and_the_time_left_is_in_whole_seconds(
    tiny: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, tiny(train__num_epochs=1), "train.iters_per_epoch=1") == 0
    _, step, after, *_ = capsys.readouterr().out.splitlines()
    assert re.search(r"ETA 0:00:00\s*$", step)
    assert after.startswith("epoch 1/1: ")


def test_steps_can_be_the_unit_of_checkpoints(tiny: Spec, tmp_path: Path) -> None:
    spec = tiny(train__num_epochs=1, train__checkpoint_interval=3, train__checkpoint_interval_unit="step")
    assert train(tmp_path, spec, "train.iters_per_epoch=7") == 0
    names = sorted(p.name for p in (tmp_path / "train").glob("model_*.pth"))
    assert names == [f"model_epoch_000_step_0000{n}.pth" for n in (3, 6, 7)]


def test_a_class_without_any_sample_trains_and_is_left_out_of_the_means(
    tiny: Spec, shapes: Path, tmp_path: Path
) -> None:
    """A category that no image shows, neither to learn from nor to be measured on."""
    changes: dict[str, Any] = {"model.sem_seg_head.num_classes": 4, "train.num_epochs": 1}
    for split in ("train", "val"):
        content = json.loads((shapes / split / "panoptic.json").read_text())
        content["categories"].append({"id": 11, "name": "unicorn", "isthing": 1})
        file = tmp_path / f"{split}.json"
        file.write_text(json.dumps(content))
        changes[f"dataset.{split}.panoptic_json"] = str(file)
    labels = json.loads((shapes / "train" / "label_map.json").read_text())
    label_map = tmp_path / "labels.json"
    label_map.write_text(json.dumps([*labels, {"id": 11, "name": "unicorn", "isthing": 1, "color": [1, 2, 3]}]))
    changes["dataset.label_map"] = str(label_map)
    assert train(tmp_path / "run", tiny(**changes)) == 0
    assert {"mIoU", "PQ", "AP"} <= {name for name, value in rows(tmp_path / "run")[0].items() if value}
    latest = tmp_path / "run" / "train" / checkpoint.LATEST
    more = [f"results_dir={tmp_path / 'run'}", f"evaluate.checkpoint={latest}"]
    assert session.run("evaluate", tmp_path / "run" / "spec.yaml", more) == 0
    table = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())
    unicorn = next((row for row in table["per_class"] if row["name"] == "unicorn"), {})
    assert "AP" not in unicorn  # nothing to find; predicted pixels still cost the other classes their IoU
    assert unicorn.get("IoU", 0.0) == 0.0
