"""Whole plans: what each action's Plan says, on real folders."""

import json
import shutil
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former_mcp import bundle
from mask2former_mcp.errors import DatasetError, InvalidRequest, NotReady, WrongState
from mask2former_mcp.jobs import contained
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.lineage import Earlier, Parent
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.platforms.protocol import Task
from mask2former_mcp.settings import Settings
from mask2former_mcp.spec import dotted

GPUS = Machine(gpus=4, gpu_memory_gb=80.0, cpus=16, memory_gb=128.0)


def said(plan: Any, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


# --- train -----------------------------------------------------------------------------------------------------------


def test_a_train_plan_builds_the_whole_data_source_table(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"))
    train, val = data / "shop" / "train", data / "shop" / "val"
    expected = {
        "dataset.train.img_dir": f"{train}/images",
        "dataset.label_map": f"{train}/label_map_panoptic.json",
        "dataset.train.panoptic_json": f"{train}/annotations_panoptic.json",
        "dataset.train.panoptic_dir": f"{train}/images_panoptic",
        "dataset.val.img_dir": f"{val}/images",
        "dataset.val.panoptic_json": f"{val}/annotations_panoptic.json",
        "dataset.val.panoptic_dir": f"{val}/images_panoptic",
        "dataset.test.img_dir": f"{val}/images",
        "dataset.train.type": "coco_panoptic",
        "dataset.val.type": "coco_panoptic",
        "dataset.test.type": "coco_panoptic",
        "dataset.contiguous_id": True,
        "model.sem_seg_head.num_classes": 3,
        "model.mode": "panoptic",
        "results_dir": "{results_dir}",
    }
    assert expected.items() <= made.spec_overrides.items()
    assert all(dotted.get(made.spec, key) == value for key, value in expected.items())
    for split, folder in (("train", train), ("val", val)):
        key = f"dataset.{split}.instance_json"
        assert key not in made.spec_overrides
        assert said(made, f"left out, not in {folder}, and coco_panoptic does not read it here: {key}")
    assert "left out" in made.warnings[-1]
    assert made.command == ("mask2former", "train", "-e", "{job_dir}/spec.yaml")
    assert made.artifacts == ("train/model_epoch_*.pth",)
    assert made.automl.route == "automl"
    assert made.datasets["train"]["hashes"].keys() == {"annotations_panoptic.json", "label_map_panoptic.json"}


def test_val_beside_train_is_used_and_named(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"))
    assert made.datasets["eval"]["uri"] == str(data / "shop" / "val")
    assert said(made, str(data / "shop" / "val"))


def test_without_validation_data_a_tenth_is_held_out_and_named(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "alone"), pretrained_weights="")
    (staged,) = made.staging
    assert staged.kind == "split"
    assert staged.source == str(data / "alone" / "annotations_panoptic.json")
    assert made.spec["dataset"]["train"]["panoptic_json"] == "{job_dir}/holdout/train/annotations_panoptic.json"
    assert made.spec["dataset"]["val"]["panoptic_json"] == "{job_dir}/holdout/val/annotations_panoptic.json"
    assert made.spec["dataset"]["val"]["img_dir"] == str(data / "alone" / "images")
    assert made.datasets["eval"]["holdout"] == {"fraction": 0.1, "seed": 1234}
    assert said(made, "2 of 20 training images are held out")
    assert made.estimate.steps == 10 * 18


def test_annotations_that_a_hold_out_does_not_divide_are_left_out_with_a_note(
    plan: Any, data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data / "alone", tmp_path / "both"))
    shutil.copy(data / "coco" / "annotations.json", folder)
    made = plan("train", train_dataset=str(folder), pretrained_weights="")
    assert "dataset.train.instance_json" not in made.spec_overrides
    assert said(made, "coco_panoptic does not read: dataset.train.instance_json, dataset.val.instance_json")


def test_one_image_cannot_be_held_out(plan: Any, tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "single"
    (folder / "images").mkdir(parents=True)
    source = data / "alone"
    document = json.loads((source / "annotations_panoptic.json").read_text())
    document["annotations"] = document["annotations"][:1]
    (folder / "annotations_panoptic.json").write_text(json.dumps(document))
    (folder / "label_map_panoptic.json").write_text((source / "label_map_panoptic.json").read_text())
    (folder / "images_panoptic").mkdir()
    with pytest.raises(DatasetError, match="hold-out"):
        plan("train", train_dataset=str(folder))


@pytest.mark.parametrize(
    ("folder", "mode", "key"), [("coco", "instance", "instance_json"), ("ade", "semantic", "annot_file")]
)
def test_the_mode_follows_the_format_unless_said(plan: Any, data: Path, folder: str, mode: str, key: str) -> None:
    made = plan("train", train_dataset=str(data / folder), eval_dataset=str(data / folder))
    assert made.spec["model"]["mode"] == mode
    assert made.spec["dataset"]["train"][key].startswith(str(data / folder))
    assert said(made, "the same folder")


def test_raw_ids_need_room_for_the_largest(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), contiguous_id=False)
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 11
    made = plan("train", train_dataset=str(data / "shop"), contiguous_id=False, num_classes=20)
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 20
    with pytest.raises(DatasetError, match=r"num_classes=10 .*largest category id, 11"):
        plan("train", train_dataset=str(data / "shop"), contiguous_id=False, num_classes=10)


def test_a_wrong_class_count_is_an_error_with_the_right_one(plan: Any, data: Path) -> None:
    with pytest.raises(DatasetError, match="num_classes=90 does not fit") as caught:
        plan("train", train_dataset=str(data / "shop"), num_classes=90)
    assert "3" in caught.value.fix


def test_categories_in_another_order_are_an_error(plan: Any, data: Path) -> None:
    with pytest.raises(DatasetError, match="differ at position 0"):
        plan("train", train_dataset=str(data / "shop" / "train"), eval_dataset=str(data / "swapped"))


def test_intervals_are_clamped_with_a_warning(plan: Any, data: Path) -> None:
    made = plan(
        "train",
        train_dataset=str(data / "shop"),
        num_epochs=5,
        overrides={"train.checkpoint_interval": 10, "train.validation_interval": 10},
    )
    assert (made.spec["train"]["checkpoint_interval"], made.spec["train"]["validation_interval"]) == (5, 5)
    assert said(made, "train.checkpoint_interval=10 is more than train.num_epochs=5")


def test_intervals_default_to_one(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"))
    assert (made.spec["train"]["checkpoint_interval"], made.spec["train"]["validation_interval"]) == (1, 1)


def test_every_spelling_of_an_override_is_the_same_plan(plan: Any, data: Path) -> None:
    folder = str(data / "shop")
    plans = [
        plan("train", train_dataset=folder, num_epochs=7, learning_rate=0.001),
        plan("train", train_dataset=folder, overrides={"train.num_epochs": 7, "train.optim.lr": 0.001}),
        plan("train", train_dataset=folder, overrides={"train": {"num_epochs": 7, "optim": {"lr": 0.001}}}),
        plan("train", train_dataset=folder, overrides={"num_epochs": 7, "learning_rate": 0.001}),
        plan("train", train_dataset=folder, num_epochs=7, overrides={"num_epochs": 7, "train": {"optim.lr": 0.001}}),
    ]
    assert len({made.digest for made in plans}) == 1


_INTERVALS = {"train.num_epochs": 10, "train.checkpoint_interval": 10, "train.validation_interval": 10}
_CALIBRATION = "dataset.quant_calibration_dataset.images_dir"
PUBLISHED: dict[str, dict[str, Any]] = {  # the published skill's overrides of each action, beside the data sources
    "train": {"train.num_gpus": 1, **_INTERVALS, "dataset.contiguous_id": True},
    "evaluate": {"dataset.contiguous_id": True},
    "inference": {"dataset.contiguous_id": True},
    "quantize": {_CALIBRATION: "{train}/images.tar.gz"},
}


def published(action: str, data: Path) -> dict[str, Any]:
    """Its literal form: archive names, and the label map as a rule by format."""
    train, val = str(data / "shop" / "train"), str(data / "shop" / "val")
    sources = {
        "dataset.train.img_dir": f"{train}/images.tar.gz",
        "dataset.label_map": {"coco_panoptic": f"{train}/label_map_panoptic.json; *: label_map.json"},
        "dataset.train.instance_json": f"{train}/annotations.json",
        "dataset.train.panoptic_json": f"{train}/annotations_panoptic.json",
        "dataset.train.panoptic_dir": f"{train}/images_panoptic.tar.gz",
        "dataset.val.img_dir": f"{val}/images.tar.gz",
        "dataset.val.instance_json": f"{val}/annotations.json",
        "dataset.val.panoptic_json": f"{val}/annotations_panoptic.json",
        "dataset.val.panoptic_dir": f"{val}/images_panoptic.tar.gz",
        "dataset.test.img_dir": f"{val}/images.tar.gz",
    }
    own = {key: value.format(train=train) if key == _CALIBRATION else value for key, value in PUBLISHED[action].items()}
    return {**own, **sources}


@pytest.mark.parametrize("action", PUBLISHED)
def test_the_published_skills_own_overrides_are_understood(plan: Any, data: Path, trained: Any, action: str) -> None:
    weights = {} if action == "train" else {"parent_job_id": trained.job_id}
    made = plan(action, dataset_format="coco_panoptic", overrides=published(action, data), **weights)
    train, val = data / "shop" / "train", data / "shop" / "val"
    assert made.spec["dataset"]["label_map"] == f"{train}/label_map_panoptic.json"
    assert said(made, "repaired")
    expected = {
        "dataset.train.img_dir": f"{train}/images",
        "dataset.train.panoptic_json": f"{train}/annotations_panoptic.json",
        "dataset.train.panoptic_dir": f"{train}/images_panoptic",
        "dataset.val.img_dir": f"{val}/images",
        "dataset.val.panoptic_json": f"{val}/annotations_panoptic.json",
        "dataset.val.panoptic_dir": f"{val}/images_panoptic",
        "dataset.test.img_dir": f"{val}/images",
        "dataset.contiguous_id": True,
        "model.sem_seg_head.num_classes": 3,
        **({_CALIBRATION: f"{train}/images"} if action == "quantize" else {}),
    }
    assert expected.items() <= made.spec_overrides.items()
    assert "dataset.train.instance_json" not in made.spec_overrides


@pytest.mark.parametrize("action", ["train", "evaluate", "export", "inference"])
def test_the_published_skills_class_count_is_refused_with_the_right_one(
    plan: Any, data: Path, trained: Any, action: str
) -> None:
    sources = published(action, data) if action in PUBLISHED else {}
    weights = {} if action == "train" else {"parent_job_id": trained.job_id}
    with pytest.raises((DatasetError, InvalidRequest), match="num_classes=90 does not fit") as caught:
        plan(action, overrides={**sources, "model.sem_seg_head.num_classes": 90}, **weights)
    assert "set it to 3" in caught.value.fix


def test_mini_is_offered_where_a_default_network_takes_hours(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), num_epochs=500)
    assert made.estimate.seconds > 3600
    assert said(made, 'preset="mini"')
    mini = plan("train", train_dataset=str(data / "shop"), preset="mini")
    assert mini.estimate.seconds < 600
    assert not said(mini, "preset=")
    assert mini.spec["model"]["backbone"]["swin"]["embed_dim"] == 48
    assert mini.spec["model"]["sem_seg_head"]["num_classes"] == 3


def test_an_explicit_backbone_wins_over_the_presets(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), preset="mini", backbone="swin_small")
    assert made.spec["model"]["backbone"]["swin"]["type"] == "small"
    assert made.spec["model"]["backbone"]["swin"]["embed_dim"] == 96
    assert said(made, "backbone is left out")


def test_from_scratch_says_why_it_matters(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), pretrained_weights="")
    assert said(made, "from scratch")
    assert made.spec["model"]["backbone"]["pretrained_weights"] == ""
    assert [item.kind for item in made.staging] == []


def test_the_name_of_pretrained_weights_sets_the_window(plan: Any, data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "swin_base_patch4_window12_384_22k.pth"
    weights.write_bytes(b"swin")
    made = plan("train", train_dataset=str(data / "shop"), backbone="swin_base", pretrained_weights=str(weights))
    assert made.spec["model"]["backbone"]["swin"]["window_size"] == 12
    assert not said(made, "from scratch")
    with pytest.raises(InvalidRequest, match="window_size=7 does not fit"):
        plan(
            "train",
            train_dataset=str(data / "shop"),
            backbone="swin_base",
            pretrained_weights=str(weights),
            overrides={"model.backbone.swin.window_size": 7},
        )
    with pytest.raises(InvalidRequest, match="are of swin base"):
        plan("train", train_dataset=str(data / "shop"), pretrained_weights=str(weights))


def test_fsdp_forces_fp16_and_says_so(plan: Any, data: Path) -> None:
    overrides = {"train.distributed_strategy": "fsdp"}
    made = plan("train", machine=GPUS, train_dataset=str(data / "shop"), num_gpus=2, overrides=overrides)
    assert made.spec["train"]["precision"] == "fp16"
    assert said(made, "trains in fp16")
    assert made.spec["train"]["gpu_ids"] == [0, 1]
    alone = plan("train", machine=GPUS, train_dataset=str(data / "shop"), overrides=overrides)
    assert alone.spec["train"]["precision"] == "fp32"
    assert said(alone, "nothing to shard")


def test_efficientvit_plans_and_may_start(make_planner: Any, plan: Any, data: Path) -> None:
    arguments = {"train_dataset": str(data / "shop"), "backbone": "efficientvit_b0", "num_gpus": 2}
    made = plan("train", machine=GPUS, **arguments)
    assert made.spec["model"]["backbone"] | {} == made.spec["model"]["backbone"]
    assert made.spec["model"]["backbone"]["efficientvit"]["name"] == "b0"
    assert said(made, "sync_batchnorm")
    assert not said(made, "cannot start yet")
    make_planner(machine=GPUS).plan(REQUESTS["train"].model_validate(arguments))


def test_hardware_guidance_is_a_warning(plan: Any, data: Path) -> None:
    assert said(plan("train", train_dataset=str(data / "shop")), "4 are recommended")
    small = Machine(gpus=1, gpu_memory_gb=11.0, cpus=8, memory_gb=32.0)
    made = plan("train", machine=small, train_dataset=str(data / "shop"))
    assert said(made, "24 GB or more")


@pytest.mark.parametrize(("gpus", "advised"), [(1, None), (2, 2), (8, 4)])
def test_no_more_gpus_are_recommended_than_the_machine_has(
    plan: Any, data: Path, gpus: int, advised: int | None
) -> None:
    machine = Machine(gpus=gpus, gpu_memory_gb=80.0, cpus=8, memory_gb=64.0)
    made = plan("train", machine=machine, train_dataset=str(data / "shop"))
    assert bool(said(made, "recommended")) == (advised is not None)
    assert advised is None or said(made, f"num_gpus={advised} is recommended")
    asked = plan("train", machine=machine, train_dataset=str(data / "shop"), num_gpus=1)
    assert not said(asked, "recommended")


def test_a_gpu_gets_as_many_loader_processes_as_its_cores_allow(
    plan: Any, make_planner: Any, data: Path, trained: Any
) -> None:
    train, one = str(data / "shop"), Machine(gpus=1, gpu_memory_gb=80.0, cpus=8, memory_gb=64.0)
    made = plan("train", machine=one, train_dataset=train)
    assert [made.spec["dataset"][split]["num_workers"] for split in ("train", "val", "test")] == [7, 7, 1]
    assert said(made, "dataset.train.num_workers and dataset.val.num_workers set to 7: 8 cores for 1 GPU(s)")
    assert made.spec_overrides["dataset.train.num_workers"] == 7
    assert plan("train", machine=GPUS, train_dataset=train).spec["dataset"]["train"]["num_workers"] == 3
    run = plan("inference", machine=replace(GPUS, cpus=64), parent_job_id=trained.job_id)
    assert run.spec["dataset"]["test"]["num_workers"] == 12
    asked_for = REQUESTS["train"].model_validate({"train_dataset": train, "platform": "docker", "dry_run": True})
    for cores, loaders in ((4.0, 3), (0.5, 1), (0.0, 7), (99.0, 7)):
        boxed = make_planner(machine=one, container_cpus=cores).plan(asked_for)
        assert boxed.spec["dataset"]["train"]["num_workers"] == loaders
    asked = plan("train", machine=one, train_dataset=train, overrides={"dataset.train.num_workers": 2})
    assert [asked.spec["dataset"][split]["num_workers"] for split in ("train", "val")] == [2, 7]
    for same in (plan("train", train_dataset=train), plan("train", machine=one, train_dataset=train, runtime="tao")):
        assert same.spec["dataset"]["train"]["num_workers"] == 1
        assert not said(same, "num_workers")


def test_a_driver_that_was_silent_once_is_asked_again(home: Path, shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, answers = replace(GPUS, gpus=0, gpu_memory_gb=None, trouble="it took more than 20 s"), GPUS
    found, now = iter([silent, answers]), [0.0]
    monkeypatch.setattr("mask2former_mcp.planning.machine.look", lambda *_: next(found))
    planner = Planner(bundle.load(), Settings(home=home), shelf, environ={}, clock=lambda: now[0])
    assert planner.machine == silent
    assert planner.machine == silent  # at once: no second wait in the same Plan
    now[0] = 60.0
    assert planner.machine == answers
    now[0] = 3600.0
    assert planner.machine == answers


def test_words_turn_automl_off_for_this_run_only(plan: Any, make_planner: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), request="Please train it, no HPO")
    assert (made.automl.policy, made.automl.route, made.automl.source) == ("off", "direct", "request")
    assert not said(made, "study of one trial")
    assert make_planner().bundle.automl_enabled
    contradiction = plan("train", train_dataset=str(data / "shop"), request="no HPO", automl_policy="auto")
    assert contradiction.automl.route == "automl"
    assert said(contradiction, "contradict")


def test_an_earlier_job_with_the_same_network_is_the_measure(plan: Any, data: Path, shelf: Any) -> None:
    first = plan("train", train_dataset=str(data / "shop"), preset="mini", num_epochs=2)
    shelf.history.append(Earlier("train-zzzz9999", first.spec, steps=100, seconds=50.0))
    made = plan("train", train_dataset=str(data / "shop"), preset="mini", num_epochs=4)
    assert made.estimate.basis == "seconds measured by train-zzzz9999; memory and disk by the model"
    assert made.estimate.seconds == pytest.approx(made.estimate.steps * 0.5)
    other = plan("train", train_dataset=str(data / "shop"), preset="mini", batch_size=4)
    assert "measured" not in other.estimate.basis


def test_a_plan_is_quick(plan: Any, data: Path) -> None:
    plan("train", train_dataset=str(data / "shop"))
    start = time.process_time()
    plan("train", train_dataset=str(data / "shop"), preset="mini")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("action", REQUESTS)
def test_a_dry_run_writes_nothing_but_the_facts_cache(workshop: Any, data: Path, action: str) -> None:
    def everything() -> dict[Path, tuple[int, int]]:
        places = [path for root in (workshop.home, data) for path in root.rglob("*")]
        kept = [path for path in places if not path.is_relative_to(workshop.home / "cache")]
        return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in kept}

    parents = {"train": None, "gen_trt_engine": "export-bbbb2222"}
    parent = parents.get(action, "train-aaaa1111")
    asked = {"parent_job_id": parent} if parent else {"train_dataset": str(data / "shop")}
    before = everything()
    assert workshop.plan(action, **asked).action == action
    assert everything() == before
    cached = [path.relative_to(workshop.home).parts[:2] for path in (workshop.home / "cache").rglob("*.*")]
    assert set(cached) == {("cache", "facts")}


def test_everything_that_a_plan_reads_shares_one_deadline(
    home: Path, shelf: Any, data: Path, make_planner: Any
) -> None:
    """Each look at the clock finds 15 s gone: less than what one reading may take, and too much for all of them."""
    request = REQUESTS["train"].model_validate({"train_dataset": str(data / "shop"), "dry_run": True})
    looks = count(step=15.0)
    hurried = Planner(bundle.load(), Settings(home=home), shelf, GPUS, {}, clock=lambda: next(looks))
    with pytest.raises(NotReady, match=r"annotations_panoptic.json goes on in the background"):
        hurried.plan(request)
    assert make_planner().plan(request).action == "train"


def test_the_key_is_only_announced(make_planner: Any, data: Path) -> None:
    planner = make_planner(environ={"M2F_ENCRYPTION_KEY": "sesame"})
    made = planner.plan(REQUESTS["train"].model_validate({"train_dataset": str(data / "shop"), "dry_run": True}))
    assert made.key_from_environment
    assert "sesame" not in made.model_dump_json()
    assert made.spec["encryption_key"] == ""


# --- later actions ---------------------------------------------------------------------------------------------------


def test_evaluate_carries_the_parents_network_and_data(plan: Any, trained: Any, data: Path) -> None:
    made = plan("evaluate", parent_job_id=trained.job_id)
    assert made.checkpoint.epoch == 1
    assert made.checkpoint.metric == 0.55
    assert made.spec["evaluate"]["checkpoint"] == (
        "{home}/jobs/train-aaaa1111/results/train/model_epoch_001_step_00010.pth"
    )
    assert made.spec["model"]["backbone"] == trained.spec["model"]["backbone"]
    assert made.spec["model"]["mask_former"] == trained.spec["model"]["mask_former"]
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 3
    assert made.spec["dataset"]["augmentation"]["test_min_size"] == 192
    assert made.spec["dataset"]["val"]["img_dir"] == str(data / "shop" / "val" / "images")
    assert made.spec_overrides["dataset.contiguous_id"] is True
    assert made.spec_overrides["model.sem_seg_head.num_classes"] == 3
    assert made.automl.source == "action"
    assert made.estimate.steps == 5


@pytest.mark.parametrize(
    ("choice", "epoch"), [(None, 1), ("best", 1), ("latest", 2), ("epoch=0", 0), ("epoch=2,step=15", 2)]
)
def test_the_checkpoint_is_chosen_by_metric_or_as_asked(plan: Any, trained: Any, choice: str, epoch: int) -> None:
    made = plan("export", parent_job_id=trained.job_id, checkpoint=choice)
    assert made.checkpoint.epoch == epoch
    assert made.checkpoint.sha256
    assert made.checkpoint.reason


def test_evaluate_on_other_data_must_have_the_same_classes(plan: Any, trained: Any, data: Path) -> None:
    made = plan("evaluate", parent_job_id=trained.job_id, eval_dataset=str(data / "alone"))
    assert made.spec["dataset"]["val"]["img_dir"] == str(data / "alone" / "images")
    with pytest.raises(DatasetError, match=r"has 2 classes, but the weights of train-aaaa1111 have 3"):
        plan("evaluate", parent_job_id=trained.job_id, eval_dataset=str(data / "other"))


def test_other_names_at_the_same_ids_are_other_classes(plan: Any, trained: Any, data: Path) -> None:
    with pytest.raises(DatasetError, match=r"differ .* at position 1: .*box.* against .*bottle"):
        plan("evaluate", parent_job_id=trained.job_id, eval_dataset=str(data / "renamed"))


def test_raw_ids_may_stand_in_any_order_but_mean_the_same(plan: Any, data: Path, shelf: Any, home: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), preset="mini", contiguous_id=False)
    results = home / "jobs" / "train-rrrr0000" / "results"
    (results / "train").mkdir(parents=True)
    (results / "train" / "model_epoch_000_step_00005.pth").write_bytes(b"w")
    shelf.jobs["train-rrrr0000"] = Parent("train-rrrr0000", "train", made.spec, results, {}, "failed", made.datasets)
    plan("evaluate", parent_job_id="train-rrrr0000", eval_dataset=str(data / "swapped"))
    with pytest.raises(DatasetError, match="a class is its id"):
        plan("evaluate", parent_job_id="train-rrrr0000", eval_dataset=str(data / "renamed"))


def test_a_parents_hold_out_is_made_again(plan: Any, shelf: Any, home: Path, data: Path) -> None:
    first = plan("train", train_dataset=str(data / "alone"), preset="mini")
    results = home / "jobs" / "train-hhhh0000" / "results"
    (results / "train").mkdir(parents=True)
    (results / "train" / "model_epoch_000_step_00005.pth").write_bytes(b"w")
    shelf.jobs["train-hhhh0000"] = Parent("train-hhhh0000", "train", first.spec, results, {}, "failed", first.datasets)
    made = plan("evaluate", parent_job_id="train-hhhh0000")
    assert made.staging == first.staging or made.staging[0].options == first.staging[0].options
    assert made.spec["dataset"]["val"]["panoptic_json"] == "{job_dir}/holdout/val/annotations_panoptic.json"
    assert made.estimate.steps == 2
    assert said(made, "ended as failed")
    run = plan("inference", parent_job_id="train-hhhh0000")
    assert run.spec["dataset"]["test"]["img_dir"] == str(data / "alone" / "images")


def test_inference_takes_a_plain_folder_of_images(plan: Any, trained: Any, data: Path) -> None:
    made = plan("inference", parent_job_id=trained.job_id, inference_dataset=str(data / "pictures"), threshold=0.7)
    assert made.spec["dataset"]["test"]["img_dir"] == str(data / "pictures")
    assert made.spec["dataset"]["label_map"] == str(data / "shop" / "train" / "label_map_panoptic.json")
    assert made.spec["model"]["object_mask_threshold"] == 0.7
    assert made.artifacts == ("inference/*",)


def test_inference_without_a_folder_uses_the_evaluation_images(plan: Any, trained: Any, data: Path) -> None:
    made = plan("inference", parent_job_id=trained.job_id)
    assert made.spec["dataset"]["test"]["img_dir"] == str(data / "shop" / "val" / "images")


def test_export_names_its_file_in_the_results(plan: Any, trained: Any) -> None:
    made = plan(
        "export", parent_job_id=trained.job_id, mode="semantic", input_width=192, input_height=160, batch_size=2
    )
    assert made.spec["export"]["onnx_file"] == "{results_dir}/export/model.onnx"
    assert made.artifacts == ("export/model.onnx",)
    assert made.spec["model"]["mode"] == "semantic"
    assert (made.spec["export"]["input_width"], made.spec["export"]["batch_size"]) == (192, 2)
    named = plan("export", parent_job_id=trained.job_id, overrides={"export.onnx_file": "shop.onnx"})
    assert named.artifacts == ("export/shop.onnx",)


def test_transformers_export_plans_a_folder(plan: Any, trained: Any) -> None:
    made = plan("export", parent_job_id=trained.job_id, format="transformers")
    assert made.spec["export"]["format"] == "transformers"
    assert made.artifacts == ("export/transformers/model.safetensors",)
    assert not said(made, "cannot start yet")
    with pytest.raises(InvalidRequest, match="runtime=tao"):
        plan("export", parent_job_id=trained.job_id, format="transformers", runtime="tao")


def test_an_export_may_replace_a_file_but_not_under_tao(plan: Any, trained: Any) -> None:
    over = {"overrides": {"export.overwrite": True}}
    assert plan("export", parent_job_id=trained.job_id, **over).spec["export"]["overwrite"] is True
    with pytest.raises(InvalidRequest, match=r"export\.overwrite is our engine's"):
        plan("export", parent_job_id=trained.job_id, runtime="tao", **over)


def test_the_spec_for_tao_has_no_key_that_only_our_engine_knows(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"weights")
    asked = {"checkpoint": str(tmp_path / "weights.pth"), "overrides": {"num_classes": 3}, "format": "onnx"}
    ours = plan("export", platform="docker", **asked)
    tao = plan("export", platform="docker", runtime="tao", **asked)
    assert ours.spec["export"]["format"] == ours.spec_overrides["export.format"] == "onnx"
    assert "format" not in tao.spec["export"]
    assert "export.format" not in tao.spec_overrides
    facts = Path(__file__).parents[2] / "facts" / "templates" / "spec_template_export.yaml"
    known = dotted.flatten(yaml.safe_load(facts.read_text()))
    assert dotted.flatten(tao.spec).keys() <= known.keys()
    assert tao.artifacts == ("export/model.onnx",)


def test_an_export_is_measured_and_used_like_a_checkpoint(plan: Any, trained: Any, exported: Any) -> None:
    for action in ("evaluate", "inference"):
        made = plan(action, parent_job_id=exported.job_id)
        assert made.spec[action]["checkpoint"] == "{home}/jobs/export-bbbb2222/results/export/model.onnx"
        assert made.spec["model"]["mode"] == "panoptic"
        assert made.datasets["eval"]["uri"] == trained.datasets["eval"]["uri"]
        assert said(made, "runs in onnxruntime")
    with pytest.raises(InvalidRequest, match="a graph has one mode"):
        plan("evaluate", parent_job_id=exported.job_id, overrides={"model.mode": "semantic"})
    with pytest.raises(InvalidRequest, match="train job"):
        plan("export", parent_job_id=exported.job_id)


def test_a_quantized_model_is_measured_used_and_exported(
    plan: Any, trained: Any, exported: Any, shelf: Any, home: Path
) -> None:
    made = plan("quantize", parent_job_id=trained.job_id)
    assert said(made, "torchao: 8-bit weights")
    file = home / "jobs" / "quantize-ffff6666" / "results" / "quantize" / "quantized_model_torchao.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"q")
    shelf.jobs["quantize-ffff6666"] = Parent(
        "quantize-ffff6666", "quantize", made.spec, file.parents[1], {}, "succeeded", made.datasets
    )
    for action in ("evaluate", "inference", "export"):
        path = plan(action, parent_job_id="quantize-ffff6666").spec[action]["checkpoint"]
        assert path.endswith("quantize-ffff6666/results/quantize/quantized_model_torchao.pth")
    assert said(plan("export", parent_job_id="quantize-ffff6666"), "full float32 again")
    static = {"backend": "modelopt.onnx", "quantize_mode": "static_ptq", "overrides": {"quantize.algorithm": "max"}}
    made = plan("quantize", parent_job_id=exported.job_id, **static)
    assert said(made, "otherwise by onnxruntime's")
    assert said(made, "modelopt.onnx, 8-bit weights and activations")
    static["overrides"] = {"quantize.algorithm": "awq_clip"}
    assert said(plan("quantize", parent_job_id=exported.job_id, **static), "modelopt.onnx, 4-bit weights")


def test_an_engine_of_a_quantized_graph_has_the_arithmetic_of_the_graph(plan: Any, exported: Any, ended: Any) -> None:
    made = plan("quantize", parent_job_id=exported.job_id, backend="modelopt.onnx")
    ended(made, "quantize-abab7777", "quantize/quantized_model.onnx")
    built = plan("gen_trt_engine", parent_job_id="quantize-abab7777")
    assert built.spec["gen_trt_engine"]["onnx_file"].endswith("quantize-abab7777/results/quantize/quantized_model.onnx")
    with pytest.raises(InvalidRequest, match="a quantized graph says itself"):
        plan("gen_trt_engine", parent_job_id="quantize-abab7777", data_type="FP16")


def test_what_simulates_quantized_arithmetic_is_not_exported(plan: Any, trained: Any, ended: Any) -> None:
    made = plan("quantize", parent_job_id=trained.job_id, backend="modelopt.pytorch")
    ended(made, "quantize-abab8888", "quantize/quantized_model_modelopt.pytorch.pth")
    with pytest.raises(InvalidRequest, match="which an export would lose"):
        plan("export", parent_job_id="quantize-abab8888")


def test_settings_of_layers_are_for_torchao_only(plan: Any, trained: Any) -> None:
    layers = {"overrides": {"quantize.layers": [{"module_name": "backbone"}]}}
    assert plan("quantize", parent_job_id=trained.job_id, **layers).spec["quantize"]["layers"]
    with pytest.raises(InvalidRequest, match=r"quantize\.layers is read by backend=torchao only"):
        plan("quantize", parent_job_id=trained.job_id, backend="modelopt.pytorch", **layers)


def test_quantize_and_engines_plan_fully(plan: Any, trained: Any, engine: Any, exported: Any) -> None:
    made = plan("quantize", parent_job_id=trained.job_id)
    assert made.spec["quantize"]["model_path"].endswith("model_epoch_001_step_00010.pth")
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 3
    built = plan("gen_trt_engine", parent_job_id=exported.job_id, data_type="FP16", max_batch_size=4, opt_batch_size=2)
    assert built.spec["gen_trt_engine"]["onnx_file"] == "{home}/jobs/export-bbbb2222/results/export/model.onnx"
    assert built.spec["gen_trt_engine"]["trt_engine"] == "{results_dir}/gen_trt_engine/model.engine"
    assert built.spec["gen_trt_engine"]["tensorrt"]["data_type"] == "FP16"
    run = plan("evaluate", parent_job_id=engine.job_id)
    assert run.spec["evaluate"]["trt_engine"].endswith("gen_trt_engine/model.engine")
    assert run.spec["evaluate"]["checkpoint"] == ""
    assert said(run, "needs the package tensorrt")
    assert run.artifacts == ("evaluate/status.json",)


def test_an_engine_is_evaluated_in_its_mode_and_under_tao_only_a_semantic_one(
    plan: Any, exported: Any, ended: Any
) -> None:
    made = plan("gen_trt_engine", parent_job_id=exported.job_id)
    ended(made, "gen_trt_engine-eeee5555", "gen_trt_engine/model.engine")
    assert plan("evaluate", parent_job_id="gen_trt_engine-eeee5555").spec["model"]["mode"] == "panoptic"
    with pytest.raises(InvalidRequest, match="made from a panoptic export"):
        plan("evaluate", parent_job_id="gen_trt_engine-eeee5555", overrides={"model.mode": "semantic"})
    with pytest.raises(InvalidRequest, match="TAO's TensorRT evaluation needs an engine made from a semantic export"):
        plan("evaluate", parent_job_id="gen_trt_engine-eeee5555", runtime="tao")


def test_fine_tuning_starts_from_the_parents_weights(plan: Any, trained: Any, data: Path) -> None:
    made = plan("train", parent_job_id=trained.job_id, train_dataset=str(data / "other"), num_epochs=2)
    assert made.spec["train"]["pretrained_model_path"].endswith("model_epoch_001_step_00010.pth")
    assert made.spec["model"]["backbone"]["swin"]["embed_dim"] == 48
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 2
    assert not said(made, "from scratch")
    again = plan("train", parent_job_id=trained.job_id)
    assert again.datasets["train"]["uri"] == str(data / "shop" / "train")


def test_a_checkpoint_file_brings_the_spec_beside_it(plan: Any, trained: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "model_epoch_004_step_00050.pth"
    file.write_bytes(b"weights")
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(trained.spec))
    made = plan("evaluate", checkpoint=str(file), eval_dataset=str(data / "shop" / "val"))
    assert made.spec["model"]["backbone"]["swin"]["embed_dim"] == 48
    assert made.checkpoint.epoch == 4
    assert plan("export", checkpoint=str(file)).spec["model"]["sem_seg_head"]["num_classes"] == 3
    run = plan("inference", checkpoint=str(file), inference_dataset=str(data / "pictures"))
    assert run.spec["dataset"]["label_map"] == str(data / "shop" / "train" / "label_map_panoptic.json")


def test_a_bare_checkpoint_needs_the_class_count(plan: Any, tmp_path: Path, data: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    with pytest.raises(InvalidRequest, match="does not know how many classes"):
        plan("export", checkpoint=str(file))
    made = plan("export", checkpoint=str(file), overrides={"num_classes": 12})
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 12
    assert said(made, "nothing says what network")
    evaluated = plan("evaluate", checkpoint=str(file), eval_dataset=str(data / "shop" / "val"))
    assert evaluated.spec["model"]["sem_seg_head"]["num_classes"] == 3


def test_an_architecture_override_that_does_not_fit_is_refused(plan: Any, trained: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"hidden_dim=128 does not fit.*hidden_dim=64"):
        plan("export", parent_job_id=trained.job_id, overrides={"model.mask_former.hidden_dim": 128})


def test_a_running_parent_is_not_ready_to_be_used(plan: Any, trained: Any, shelf: Any) -> None:
    shelf.jobs["train-bbbb0000"] = replace(trained, job_id="train-bbbb0000", state="running")
    with pytest.raises(WrongState, match="still running"):
        plan("evaluate", parent_job_id="train-bbbb0000")


def test_a_results_folder_must_be_new_or_empty(plan: Any, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    made = plan("train", train_dataset=str(data / "shop"), results_dir=str(folder))
    assert made.results_dir == str(folder)
    assert made.spec["results_dir"] == "{results_dir}"
    folder.mkdir()
    assert plan("train", train_dataset=str(data / "shop"), results_dir=str(folder)).digest == made.digest
    (folder / "old.txt").write_text("x")
    with pytest.raises(InvalidRequest, match="not empty"):
        plan("train", train_dataset=str(data / "shop"), results_dir=str(folder))
    again = plan("train", train_dataset=str(data / "shop"), results_dir=str(folder), run_name="same-job")
    assert again.digest == made.digest


def test_quantize_measures_on_the_parents_validation_data(
    plan: Any, trained: Any, shelf: Any, home: Path, data: Path
) -> None:
    made = plan("quantize", parent_job_id=trained.job_id)
    assert made.spec["dataset"]["val"]["panoptic_json"] == str(data / "shop" / "val" / "annotations_panoptic.json")
    assert made.spec["dataset"]["quant_calibration_dataset"]["images_dir"] == str(data / "shop" / "train" / "images")
    assert not said(made, "no drop of the metric")
    for folder, job_id in (("alone", "train-hhhh0000"), ("ade", "train-hhhh1111")):
        first = plan("train", train_dataset=str(data / folder), preset="mini")
        results = home / "jobs" / job_id / "results"
        (results / "train").mkdir(parents=True)
        (results / "train" / "model_epoch_000_step_00005.pth").write_bytes(b"w")
        shelf.jobs[job_id] = Parent(job_id, "train", first.spec, results, {}, "succeeded", first.datasets)
        made = plan("quantize", parent_job_id=job_id)
        measured = plan("evaluate", parent_job_id=job_id)
        assert made.staging[0].options == measured.staging[0].options
        assert made.spec["dataset"]["val"] == measured.spec["dataset"]["val"]
        assert made.spec["dataset"]["quant_calibration_dataset"]["images_dir"] == str(data / folder / "images")


def test_quantize_without_validation_data_says_that_nothing_is_measured(
    plan: Any, trained: Any, shelf: Any, data: Path
) -> None:
    gone = {**trained.datasets, "eval": {"uri": str(data / "gone"), "format": "coco_panoptic"}}
    shelf.jobs[trained.job_id] = replace(trained, datasets=gone)
    made = plan("quantize", parent_job_id=trained.job_id)
    assert said(made, f"no drop of the metric will be measured: {data / 'gone'} is gone")
    assert not made.spec["dataset"]["val"]["panoptic_json"]
    with pytest.raises(DatasetError, match="does not exist"):
        plan("quantize", parent_job_id=trained.job_id, eval_dataset=str(data / "gone"))


def test_a_plain_coco_export_needs_no_label_map(plan: Any, shelf: Any, home: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(data / "coco", folder, ignore=shutil.ignore_patterns("label_map.json"))
    made = plan("train", train_dataset=str(folder), preset="mini", pretrained_weights="")
    assert made.spec["dataset"]["label_map"] == "{job_dir}/derived/label_map.json"
    assert said(made, "has no label_map.json: it is written in the job's folder")
    assert [item.kind for item in made.staging] == ["label_map", "split"]
    results = home / "jobs" / "train-llll0000" / "results"
    (results / "train").mkdir(parents=True)
    (results / "train" / "model_epoch_000_step_00005.pth").write_bytes(b"w")
    shelf.jobs["train-llll0000"] = Parent("train-llll0000", "train", made.spec, results, {}, "failed", made.datasets)
    again = plan("evaluate", parent_job_id="train-llll0000", eval_dataset=str(data / "coco_val"))
    assert again.spec["dataset"]["label_map"] == "{job_dir}/derived/label_map.json"
    renamed = json.loads((data / "coco_val" / "annotations.json").read_text())
    renamed["categories"][0]["name"] = "conveyor"
    shutil.copytree(data / "coco_val", tmp_path / "renamed")
    (tmp_path / "renamed" / "annotations.json").write_text(json.dumps(renamed))
    with pytest.raises(DatasetError, match="conveyor"):
        plan("evaluate", parent_job_id="train-llll0000", eval_dataset=str(tmp_path / "renamed"))


def test_inference_takes_one_image(plan: Any, trained: Any, data: Path) -> None:
    made = plan("inference", parent_job_id=trained.job_id, inference_dataset=str(data / "pictures" / "one.png"))
    assert made.spec["dataset"]["test"]["img_dir"] == "{job_dir}/derived/pictures"
    assert [item.kind for item in made.staging] == ["copy"]
    assert made.estimate.steps == 1


def test_a_folder_that_only_holds_train_gets_a_hold_out(plan: Any, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "alone", tmp_path / "only" / "train")
    made = plan("train", train_dataset=str(tmp_path / "only"))
    assert made.datasets["train"]["uri"] == str(tmp_path / "only" / "train")
    assert said(made, "2 of 20 training images are held out")


@pytest.mark.parametrize("dataset_format", ["alone", "coco", "ade"])
def test_a_missing_image_is_named_before_anything_starts(
    plan: Any, data: Path, tmp_path: Path, dataset_format: str
) -> None:
    folder = Path(shutil.copytree(data / dataset_format, tmp_path / "shop"))
    plan("train", train_dataset=str(folder))
    (folder / "images" / "0003.png").unlink()  # the annotations, and their cached facts, stay as they are
    with pytest.raises(DatasetError, match=r"1 image\(s\) that the train annotations name .*0003\.png"):
        plan("train", train_dataset=str(folder))


def test_tiny_jobs_are_no_measure_and_the_longest_is_the_best(plan: Any, data: Path, shelf: Any) -> None:
    asked = {"train_dataset": str(data / "shop"), "preset": "mini"}
    first = plan("train", num_epochs=2, **asked)
    shelf.history.append(Earlier("train-tiny0000", first.spec, steps=6, seconds=60.0, step_s=0.2))
    assert "measured" not in plan("train", num_epochs=4, **asked).estimate.basis
    shelf.history.append(Earlier("train-long0000", first.spec, steps=400, seconds=500.0, step_s=0.05))
    shelf.history.insert(0, Earlier("train-newer000", first.spec, steps=60, seconds=500.0, step_s=5.0))
    made = plan("train", num_epochs=400, **asked)
    assert made.estimate.basis == "seconds measured by train-long0000; memory and disk by the model"
    validation = made.estimate.seconds - 8 - made.estimate.steps * 0.05
    assert 0 < validation < 0.5 * made.estimate.seconds


def test_more_validation_images_take_longer_at_the_same_pace(plan: Any, data: Path, shelf: Any) -> None:
    asked = {"train_dataset": str(data / "shop" / "train"), "preset": "mini", "num_epochs": 40}
    few = plan("train", **asked, eval_dataset=str(data / "shop" / "val"))
    shelf.history.append(Earlier("train-zzzz9999", few.spec, steps=400, seconds=500.0, step_s=0.5))
    few, many = (plan("train", **asked, eval_dataset=str(data / name)) for name in ("shop/val", "alone"))
    assert few.estimate.basis == many.estimate.basis
    assert "measured by train-zzzz9999" in few.estimate.basis
    assert many.estimate.seconds > few.estimate.seconds


def test_what_keeps_a_job_from_starting_is_said_first(plan: Any, data: Path) -> None:
    overrides = {"train.num_gpus": 2}
    made = plan("train", train_dataset=str(data / "shop"), platform="docker", overrides=overrides)
    first = [warning.startswith("cannot start yet") for warning in made.warnings]
    assert first == sorted(first, reverse=True)
    assert first[0]


def test_the_mounts_of_a_plan_are_those_that_its_container_gets(plan: Any, data: Path, home: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), platform="docker", preset="mini")
    assert {mount.target.rpartition("/")[2] for mount in made.mounts} > {"results", "job", "images", "images_panoptic"}
    folders = Folders(home=home, job=home / "jobs" / "train-1", results=home / "jobs" / "train-1" / "results")
    folders.results.mkdir(parents=True)
    said = [(folders.fill(mount.source), mount.target, mount.read_only) for mount in made.mounts]
    for source, _, read_only in said:
        if read_only and not Path(source).exists():  # what the job stages first
            Path(source).mkdir(parents=True)
    task = Task(job_id="train-1", attempt=1, command=("mask2former", "train", "-e", str(folders.spec)),
                job_dir=folders.job, results_dir=folders.results, log_file=folders.log, devices=())  # fmt: skip
    got = contained.contained(task, folders.fill(made.spec), folders, made.digest).binds
    assert said == [(str(bind.source), bind.target, bind.read_only) for bind in got]
    assert plan("train", train_dataset=str(data / "shop"), preset="mini").mounts == ()


def test_a_handful_of_validation_images_is_said_to_be_noise(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"))
    assert "only 5 validation image(s): the metric is mostly noise" in made.warnings[0]
    many = plan("train", train_dataset=str(data / "shop" / "train"), eval_dataset=str(data / "alone"))
    assert not said(many, "mostly noise")


def test_instances_are_judged_by_ap_and_everything_else_by_miou(plan: Any, data: Path) -> None:
    """In instance mode most pixels are unannotated, and mIoU over the others can be 1 with no object found."""
    assert plan("train", train_dataset=str(data / "coco")).metric == "AP"
    assert plan("train", train_dataset=str(data / "shop"), mode="instance").metric == "AP"
    assert plan("train", train_dataset=str(data / "shop")).metric == "mIoU"
    assert plan("train", train_dataset=str(data / "ade")).metric == "mIoU"


def test_a_search_over_instances_maximises_ap(plan: Any, data: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"automl.metric=mIoU is not measured with mode=instance"):
        plan("train", train_dataset=str(data / "coco"), automl_policy="on", automl={"metric": "mIoU"})


def test_classes_of_coco_annotations_are_measured_where_there_are_annotations(plan: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "coco"), mode="semantic")
    assert made.metric == "mIoU"
    assert any("pixels outside all masks" in note for note in made.warnings)


def test_a_threshold_chooses_the_rows_of_the_instances_too(plan: Any, trained: Any) -> None:
    asked = {"parent_job_id": trained.job_id}
    assert plan("inference", **asked).spec["inference"]["min_score"] == 0.05
    said = plan("inference", **asked, threshold=0.7).spec
    assert said["inference"]["min_score"] == said["model"]["object_mask_threshold"] == 0.7
    both = plan("inference", **asked, overrides={"model.object_mask_threshold": 0.7, "inference.min_score": 0.2}).spec
    assert both["inference"]["min_score"] == 0.2
