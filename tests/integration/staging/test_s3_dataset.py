"""A dataset in S3 is planned from its annotations alone, fetched once when a job is prepared, and checked like any."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_mcp import bundle
from mask2former_mcp.datasets import check
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.errors import DatasetError
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.server.data_tools import dataset_report
from mask2former_mcp.server.requests import CheckDatasetRequest
from mask2former_mcp.server.services import Services
from mask2former_mcp.settings import Settings
from mask2former_mcp.staging import mirror
from mask2former_mcp.staging.prepare import real, stage
from mask2former_mcp.staging.uri import Uri

TRAIN = REQUESTS["train"]


def make(folder: Path, images: int = 12) -> None:
    """A COCO instance dataset of coloured squares."""
    (folder / "images").mkdir(parents=True)
    entries, annotations = [], []
    for number in range(1, images + 1):
        pixels = np.full((64, 64, 3), number * 9 + len(folder.name), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{folder.name}{number}.png")
        entries.append({"id": number, "file_name": f"{folder.name}{number}.png", "width": 64, "height": 64})
        annotations += [
            {"id": 2 * number + k, "image_id": number, "category_id": k + 1, "iscrowd": 0, "area": 100,
             "bbox": [8, 8, 10, 10], "segmentation": [[8, 8, 18, 8, 18, 18, 8, 18]]} for k in range(2)
        ]  # fmt: skip
    categories = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    text = json.dumps({"images": entries, "annotations": annotations, "categories": categories})
    (folder / "annotations.json").write_text(text)
    labels = [{"id": c["id"], "name": c["name"], "color": [9, 9, 9], "isthing": 1} for c in categories]
    (folder / "label_map.json").write_text(json.dumps(labels))


def upload(store: Any, folder: Path, prefix: str) -> None:
    """Straight into the server's folder: requests for so many small files would take seconds."""
    shutil.copytree(folder, store.folder / "shop" / prefix)


@pytest.fixture
def data(store: Any, tmp_path: Path) -> str:
    for part in ("train", "val"):
        make(tmp_path / "set" / part)
    upload(store, tmp_path / "set", "set")
    return "s3://shop/set"


def plan(home: Path, **arguments: Any) -> Plan:
    settings = Settings(home=home)

    class Nobody:  # no jobs before this one
        def parent(self, job_id: str) -> Any:
            raise AssertionError(job_id)

        def earlier(self, action: str) -> list[Any]:
            return []

    planner = Planner(bundle.load(), settings, Nobody(), Machine(0, None, 2, 8.0), environ={})
    return planner.plan(TRAIN(preset="mini", automl_policy="off", **arguments))


def staged(made: Plan, home: Path, job_dir: Path) -> dict[str, Path]:
    stage([item.model_dump() for item in made.staging], home=home, job_dir=job_dir)
    dataset = made.spec["dataset"]
    keys = {"images": dataset["train"]["img_dir"], "val": dataset["val"]["img_dir"], "labels": dataset["label_map"],
            "json": dataset["train"]["instance_json"]}  # fmt: skip
    return {name: real(text, home, job_dir) for name, text in keys.items()}


def test_a_plan_reads_annotations_only_and_the_job_fetches_the_rest_once(
    data: str, cutting: Any, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    made = plan(home, train_dataset=data)
    assert not list((home / "cache").rglob("*.png"))
    assert made.spec["dataset"]["train"]["img_dir"].startswith("{home}/cache/s3/folders/")
    assert made.datasets["train"]["uri"] == f"{data}/train"
    found = staged(made, home, tmp_path / "job")
    assert len(list(found["images"].glob("train*.png"))) == 12
    assert len(list(found["val"].glob("val*.png"))) == 12
    assert json.loads(found["labels"].read_text())[0]["name"] == "bolt"
    cutting.sent = 0
    assert staged(made, home, tmp_path / "job2") == found
    assert cutting.sent == 0


def test_the_same_data_gives_the_same_digest_in_another_home(data: str, tmp_path: Path) -> None:
    assert plan(tmp_path / "a", train_dataset=data).digest == plan(tmp_path / "b", train_dataset=data).digest


def test_archives_in_s3_are_fetched_and_extracted(store: Any, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    make(folder)
    with tarfile.open(folder / "images.tar.gz", "w:gz") as archive:
        archive.add(folder / "images", "images")
    shutil.rmtree(folder / "images")
    upload(store, folder, "packed")
    home = tmp_path / "home"
    made = plan(home, train_dataset="s3://shop/packed")
    assert [item.kind for item in made.staging] == ["fetch", "extract", "split"]
    found = staged(made, home, tmp_path / "job")
    assert len(list(found["images"].glob("*.png"))) == 12
    assert len(json.loads(found["json"].read_text())["images"]) == 11


def test_data_that_changed_after_the_plan_is_refused(data: str, store: Any, tmp_path: Path) -> None:
    made = plan(tmp_path / "home", train_dataset=data)
    store.client().put_object(Bucket="shop", Key="set/train/images/train1.png", Body=b"other")
    with pytest.raises(DatasetError, match="has changed since the plan"):
        staged(made, tmp_path / "home", tmp_path / "job")


def test_a_missing_file_is_named_by_its_uri(store: Any, tmp_path: Path) -> None:
    make(tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "images")
    upload(store, tmp_path / "bare", "bare")
    with pytest.raises(DatasetError, match=r"s3://shop/bare has no images/ or images\.tar\.gz"):
        plan(tmp_path / "home", train_dataset="s3://shop/bare")


def test_a_missing_label_map_is_written_from_the_annotations_in_s3(store: Any, tmp_path: Path) -> None:
    make(tmp_path / "bare")
    (tmp_path / "bare" / "label_map.json").unlink()
    upload(store, tmp_path / "bare", "bare")
    made = plan(tmp_path / "home", train_dataset="s3://shop/bare")
    staged(made, tmp_path / "home", tmp_path / "job")
    written = json.loads((tmp_path / "job" / "derived" / "label_map.json").read_text())
    assert [row["name"] for row in written] == ["bolt", "nut"]


def test_check_dataset_reads_s3(data: str, tmp_path: Path) -> None:
    report = check.check(DatasetRef.parse(data), home=tmp_path / "home")
    assert report.finished
    assert report.ready, report.problems
    assert report.counts["images"] == 12


def test_check_dataset_names_a_broken_image_in_s3(data: str, store: Any, tmp_path: Path) -> None:
    store.client().put_object(Bucket="shop", Key="set/train/images/train1.png", Body=b"no picture")
    report = check.check(DatasetRef.parse(data), home=tmp_path / "home")
    assert not report.ready
    assert any("train1.png" in problem["file"] for problem in report.as_dict()["problems"])


def test_check_dataset_keeps_the_cache_in_bounds(data: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    old = mirror.fill(Uri.parse(f"{data}/val"), home, [""])
    os.utime(old, (0, 0))
    services = Services({**os.environ, "M2F_HOME": str(home), "M2F_S3_CACHE_GB": "0.000001", "M2F_GPUS": "none"})
    assert dataset_report(services, CheckDatasetRequest(dataset=f"{data}/train"))["ready"]
    assert not old.exists()
