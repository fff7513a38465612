"""The chain on COCO instance annotations: objects are found, measured by AP, exported, quantized and used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest


@pytest.mark.slow  # five jobs, each a process that imports torch
def test_from_coco_instances_to_a_model_that_finds_objects(
    walk: Any, belt: Path, tiny_training: dict[str, Any]
) -> None:
    async def steps(user: Any) -> None:
        asked = {**tiny_training, "dataset_format": "coco", "automl_policy": "off", "num_epochs": 1}
        train = await user.run("train", **asked)
        assert "AP" in train["metrics"]
        assert not {"PQ", "mIoU"} & train["metrics"].keys()
        parent = {"parent_job_id": train["job_id"]}

        evaluated = await user.run("evaluate", **parent)
        assert evaluated["metrics"]["AP"] == train["metrics"]["AP"]

        exported = await user.run("export", **parent, input_width=96, input_height=96)
        graph = next(p for name, p in (await user.files(exported["job_id"])).items() if name.endswith(".onnx"))
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        assert [o.name for o in session.get_outputs()] == ["pred_masks", "pred_scores", "pred_classes"]
        masks, scores, classes = session.run(None, {"inputs": np.zeros((2, 3, 96, 96), np.float32)})
        assert masks.shape[:2] == scores.shape == classes.shape

        quantized = await user.run("quantize", **parent)
        used = await user.run(
            "inference", parent_job_id=quantized["job_id"], inference_dataset=str(belt / "test" / "images")
        )
        files = await user.files(used["job_id"])
        found = json.loads(files["inference/instances.json"].read_text())
        assert {row["image_id"] for row in found} <= {1, 2}
        assert not any("panoptic" in name or "semantic" in name for name in files)
        assert sum(name.endswith(".jpg") for name in files) == 2

    walk(steps)
