"""The digest says what runs: never when, never where the home is, never which job."""

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former_mcp import bundle
from mask2former_mcp.planning.digest import digest
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.settings import Settings

CPU = Machine(gpus=0, gpu_memory_gb=None, cpus=2, memory_gb=16.0)


def at(home: Path, shelf: Any, action: str, **arguments: Any) -> Any:
    planner = Planner(bundle.load(), Settings(home=home), shelf, CPU, {})
    return planner.plan(REQUESTS[action].model_validate({"dry_run": True, **arguments}))


def test_the_home_does_not_count(tmp_path: Path, shelf: Any, data: Path) -> None:
    one = at(tmp_path / "a", shelf, "train", train_dataset=str(data / "shop"))
    other = at(tmp_path / "b" / "deeper", shelf, "train", train_dataset=str(data / "shop"))
    assert one.digest == other.digest


def test_data_in_the_home_counts_by_its_place_there(tmp_path: Path, shelf: Any, data: Path) -> None:
    plans = []
    for name in ("a", "b"):
        shutil.copytree(data / "shop", tmp_path / name / "demo" / "shop")
        plans.append(at(tmp_path / name, shelf, "train", train_dataset=str(tmp_path / name / "demo" / "shop")))
    assert plans[0].digest == plans[1].digest


def test_a_parents_id_does_not_count_but_its_weights_do(plan: Any, trained: Any, shelf: Any, home: Path) -> None:
    from dataclasses import replace

    first = plan("export", parent_job_id=trained.job_id)
    copy = home / "jobs" / "train-cccc9999" / "results"
    shutil.copytree(trained.results_dir, copy, symlinks=True)
    shelf.jobs["train-cccc9999"] = replace(trained, job_id="train-cccc9999", results_dir=copy)
    assert plan("export", parent_job_id="train-cccc9999").digest == first.digest
    (copy / "train" / "model_epoch_001_step_00010.pth").write_bytes(b"other weights")
    assert plan("export", parent_job_id="train-cccc9999").digest != first.digest


def test_what_does_not_change_the_work_does_not_count(plan: Any, data: Path, tmp_path: Path) -> None:
    base = plan("train", train_dataset=str(data / "shop"))
    for arguments in (
        {"results_dir": str(tmp_path / "out")},
        {"run_name": "a-name"},
        {"dry_run": True, "expect_digest": "x"},
        {"overrides": {"train.num_epochs": 10}},
        {"num_gpus": 1},
        {"machine": Machine(gpus=1, gpu_memory_gb=80.0, cpus=16, memory_gb=128.0)},
    ):
        assert plan("train", train_dataset=str(data / "shop"), **arguments).digest == base.digest, arguments


def test_what_changes_the_work_counts(plan: Any, data: Path) -> None:
    base = plan("train", train_dataset=str(data / "shop"))
    others = [
        plan("train", train_dataset=str(data / "shop"), **arguments)
        for arguments in (
            {"num_epochs": 11},
            {"preset": "mini"},
            {"eval_dataset": str(data / "alone")},
            {"contiguous_id": False},
            {"overrides": {"train.seed": 7}},
            {"overrides": {"dataset.train.num_workers": 3}},
            {"runtime": "tao"},
        )
    ]
    assert len({base.digest, *(made.digest for made in others)}) == len(others) + 1


def test_annotations_count_by_content_not_by_time(tmp_path: Path, plan: Any, data: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(data / "shop", folder)
    first = plan("train", train_dataset=str(folder))
    annotations = folder / "train" / "annotations_panoptic.json"
    os.utime(annotations, (1, 1))
    assert plan("train", train_dataset=str(folder)).digest == first.digest
    annotations.write_text(annotations.read_text().replace('"area": 64', '"area": 63'))
    assert plan("train", train_dataset=str(folder)).digest != first.digest


def test_an_archive_counts_by_its_place_not_by_its_time(tmp_path: Path, plan: Any, data: Path) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(data / "shop", folder)
    with tarfile.open(folder / "train" / "images.tar.gz", "w:gz") as archive:
        archive.add(folder / "train" / "images", "images")
    shutil.rmtree(folder / "train" / "images")
    first = plan("train", train_dataset=str(folder), pretrained_weights="")
    (staged,) = first.staging
    assert staged.kind == "extract"
    assert "dataset.train.img_dir" in staged.keys
    os.utime(folder / "train" / "images.tar.gz", (1, 1))
    second = plan("train", train_dataset=str(folder), pretrained_weights="")
    assert second.staging != first.staging
    assert second.digest == first.digest


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
specs = st.dictionaries(st.text(min_size=1, max_size=6), json_values, max_size=5)


def of(spec: dict[str, Any], home: str = "/home/me/m2f", **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "action": "train", "spec": spec, "bundle_digest": "b", "datasets": {}, "platform": "local", "runtime": "engine",
        "image": None, "home": Path(home), "stand_ins": {},
    }  # fmt: skip
    return digest(**{**arguments, **changes})


@settings(max_examples=150, deadline=None)
@given(specs, st.sampled_from(["/srv/a", "/srv/a/b", "/x"]), st.text("abc/", min_size=1, max_size=8))
def test_paths_below_any_home_are_one_path(spec: dict[str, Any], home: str, tail: str) -> None:
    here = {**spec, "file": f"{home}/{tail}"}
    there = {**spec, "file": f"/home/me/m2f/{tail}"}
    assert of(here, home) == of(there)


@settings(max_examples=150, deadline=None)
@given(specs)
def test_order_and_number_spelling_do_not_count(spec: dict[str, Any]) -> None:
    backwards = dict(reversed(list(spec.items())))
    assert of(spec) == of(backwards)
    assert of({**spec, "n": 1}) == of({**spec, "n": 1.0})


@pytest.mark.parametrize(
    "change", [{"action": "evaluate"}, {"bundle_digest": "c"}, {"platform": "docker"}, {"image": "x"}]
)
def test_each_part_counts(change: dict[str, str]) -> None:
    assert of({"a": 1}) != of({"a": 1}, **change)
