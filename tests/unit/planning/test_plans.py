"""Whole plans: what every one promises, whatever its action."""

import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp import bundle
from mask2former_mcp.errors import InvalidRequest, NotReady, WrongState
from mask2former_mcp.jobs import contained
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.platforms.protocol import Task
from mask2former_mcp.settings import Settings

GPUS = Machine(gpus=4, gpu_memory_gb=80.0, cpus=16, memory_gb=128.0)


def said(plan: Any, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


def test_words_turn_automl_off_for_this_run_only(plan: Any, make_planner: Any, data: Path) -> None:
    made = plan("train", train_dataset=str(data / "shop"), request="Please train it, no HPO")
    assert (made.automl.policy, made.automl.route, made.automl.source) == ("off", "direct", "request")
    assert not said(made, "study of one trial")
    assert make_planner().bundle.automl_enabled
    contradiction = plan("train", train_dataset=str(data / "shop"), request="no HPO", automl_policy="auto")
    assert contradiction.automl.route == "automl"
    assert said(contradiction, "contradict")


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
