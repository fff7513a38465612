"""The chain on what an annotation tool leaves behind: one folder, no label map, no validation part."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow  # three jobs, each a process that imports torch
def test_from_a_plain_export_to_a_measured_quantized_model(
    walk: Any, belt: Path, tiny_training: dict[str, Any], tmp_path: Path
) -> None:
    export = tmp_path / "export" / "train"
    shutil.copytree(belt / "train" / "images", export)
    shutil.copy(belt / "train" / "annotations.json", export / "_annotations.coco.json")
    asked = {key: value for key, value in tiny_training.items() if not key.endswith("_dataset")}
    asked |= {"train_dataset": str(export.parent), "automl_policy": "off", "num_epochs": 1}

    async def steps(user: Any) -> None:
        train = await user.run("train", **asked)
        parent = {"parent_job_id": train["job_id"]}
        quantized = await user.run("quantize", **parent)
        report = json.loads((await user.files(quantized["job_id"]))["quantize/report.json"].read_text())
        assert "AP" in report["drop"]  # of instances; mIoU would say nothing
        assert report["before"]["metrics"]["AP"] == pytest.approx(
            train["metrics"]["AP"], abs=1e-3
        )  # shown with 4 digits
        used = await user.run("inference", **parent, inference_dataset=str(belt / "test" / "images" / "test_00000.jpg"))
        assert sum(name.endswith(".jpg") for name in await user.files(used["job_id"])) == 1

    walk(steps)
