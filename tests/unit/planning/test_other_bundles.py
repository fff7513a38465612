"""Bundles with missing parts, and bundles of networks that this package has no rules for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former_mcp import bundle
from mask2former_mcp.errors import BundleError, InvalidRequest, NotFound
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.settings import Settings

CPU = Machine(gpus=0, gpu_memory_gb=None, cpus=2, memory_gb=16.0)


@pytest.fixture
def skill(tmp_path: Path) -> Path:
    """A copy of the packaged bundle's schemas and references, to be damaged."""
    packaged = bundle.load().directory
    for part in ("schemas", "references"):
        shutil.copytree(packaged / part, tmp_path / "skill" / part)
    return tmp_path / "skill"


def planned(skill: Path, home: Path, shelf: Any, action: str, **arguments: Any) -> Any:
    planner = Planner(bundle.load(skill), Settings(home=home), shelf, CPU, {})
    return planner.plan(REQUESTS[action].model_validate({"dry_run": True, **arguments}))


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_without_a_train_schema_automl_is_enabled_but_not_runnable(
    skill: Path, home: Path, shelf: Any, data: Path, damage: str
) -> None:
    schema = skill / "schemas" / "train.schema.json"
    schema.unlink() if damage == "missing" else schema.write_text("{")
    made = planned(skill, home, shelf, "train", train_dataset=str(data / "shop"), num_epochs=3)
    assert (made.automl.policy, made.automl.route) == ("auto", "direct")
    assert "enabled for this model but not runnable until its schemas are generated" in made.automl.reason
    assert "train.schema.json" in made.automl.reason
    assert made.spec["train"]["num_epochs"] == 3
    assert any("not checked against a schema" in warning for warning in made.warnings)
    with pytest.raises(InvalidRequest, match="unknown spec key"):
        planned(skill, home, shelf, "train", train_dataset=str(data / "shop"), overrides={"train.epochs": 3})


def test_without_a_train_template_the_schemas_defaults_serve(skill: Path, home: Path, shelf: Any, data: Path) -> None:
    (skill / "references" / "spec_template_train.yaml").unlink()
    made = planned(skill, home, shelf, "train", train_dataset=str(data / "shop"))
    assert made.automl.route == "direct"
    assert "spec_template_train.yaml" in made.automl.reason
    assert made.spec["train"]["num_epochs"] == 10


def test_without_both_there_is_no_plan(skill: Path, home: Path, shelf: Any, data: Path) -> None:
    (skill / "references" / "spec_template_train.yaml").unlink()
    (skill / "schemas" / "train.schema.json").unlink()
    with pytest.raises(BundleError, match=r"spec_template_train.*not runnable until its schemas are generated"):
        planned(skill, home, shelf, "train", train_dataset=str(data / "shop"))


def test_a_bundle_that_disables_automl_trains_directly(skill: Path, home: Path, shelf: Any, data: Path) -> None:
    info = skill / "references" / "skill_info.yaml"
    info.write_text(yaml.safe_dump({**yaml.safe_load(info.read_text()), "automl_enabled": False}))
    made = planned(skill, home, shelf, "train", train_dataset=str(data / "shop"))
    assert made.automl.route == "direct"
    assert "does not enable AutoML" in made.automl.reason


def test_an_unknown_network_plans_with_its_bundle_alone(skill: Path, home: Path, shelf: Any, data: Path) -> None:
    info = skill / "references" / "skill_info.yaml"
    info.write_text(yaml.safe_dump({**yaml.safe_load(info.read_text()), "network_arch": "somethingformer"}))
    for path in (skill / "schemas").glob("*.schema.json"):
        schema = json.loads(path.read_text())
        schema["x_tao_schema"]["network_arch"] = "somethingformer"
        path.write_text(json.dumps(schema))
    made = planned(skill, home, shelf, "train", train_dataset=str(data / "shop"), num_epochs=4, batch_size=2)
    assert made.spec["train"]["num_epochs"] == 4
    assert made.spec["dataset"]["train"]["batch_size"] == 2
    assert made.spec["dataset"]["train"]["img_dir"] == str(data / "shop" / "train" / "images")
    assert any("no rules of its own" in warning for warning in made.warnings)
    assert made.estimate.basis == "none for this model"
    with pytest.raises(InvalidRequest, match="no spec key for this argument"):
        planned(skill, home, shelf, "train", train_dataset=str(data / "shop"), backbone="swin_tiny")


def test_a_row_that_takes_a_folder_gets_the_folder_of_the_chosen_file(
    skill: Path, home: Path, shelf: Any, trained: Any
) -> None:
    info = skill / "references" / "skill_info.yaml"
    content = yaml.safe_load(info.read_text())
    content["spec_params"]["evaluate"]["evaluate.checkpoint"] = "parent_model_folder"
    info.write_text(yaml.safe_dump(content))
    made = planned(skill, home, shelf, "evaluate", parent_job_id=trained.job_id)
    assert made.spec["evaluate"]["checkpoint"] == "{home}/jobs/train-aaaa1111/results/train"
    assert made.checkpoint.path == "{home}/jobs/train-aaaa1111/results/train/model_epoch_001_step_00010.pth"
    assert any("the folder of model_epoch_001_step_00010.pth" in warning for warning in made.warnings)
    # The same bytes in another job's folder are the same work; other bytes are not.
    again = replace(trained, job_id="train-bbbb2222", results_dir=home / "jobs" / "train-bbbb2222" / "results")
    shutil.copytree(trained.results_dir, again.results_dir)
    shelf.jobs[again.job_id] = again
    assert planned(skill, home, shelf, "evaluate", parent_job_id=again.job_id).digest == made.digest
    latest = planned(skill, home, shelf, "evaluate", parent_job_id=trained.job_id, checkpoint="latest")
    assert latest.spec["evaluate"]["checkpoint"] == made.spec["evaluate"]["checkpoint"]
    assert latest.digest != made.digest


def test_the_job_store_is_a_source_of_parents(home: Path, data: Path) -> None:
    settings = Settings(home=home)
    planner = Planner(bundle.load(), settings, Jobs(settings), CPU, {})
    request = {"train_dataset": str(data / "shop"), "dry_run": True}
    assert planner.plan(REQUESTS["train"].model_validate(request)).action == "train"
    with pytest.raises(NotFound, match="train-none0000"):
        planner.plan(REQUESTS["evaluate"].model_validate({"parent_job_id": "train-none0000", "dry_run": True}))


@pytest.mark.parametrize("action", ["train", "evaluate", "gen_trt_engine"])
def test_a_folder_as_nvidia_publishes_it_plans_what_ours_does(
    nvidia_folder: Path, home: Path, shelf: Any, data: Path, action: str
) -> None:
    asked = {
        "train": {"train_dataset": str(data / "shop"), "num_epochs": 3, "pretrained_weights": ""},
        "evaluate": {"eval_dataset": str(data / "shop"), "checkpoint": str(data / "model.pth")},
        "gen_trt_engine": {"onnx_file": str(data / "model.onnx")},
    }[action]
    (data / "model.pth").write_bytes(b"weights")
    (data / "model.onnx").write_bytes(b"graph")
    ours = planned(bundle.load().directory, home, shelf, action, **asked)
    theirs = planned(nvidia_folder, home, shelf, action, **asked)
    said = [{key: value for key, value in plan.spec_overrides.items() if value != ""} for plan in (theirs, ours)]
    assert said[0] == said[1]
    assert theirs.digest != ours.digest
