"""The chain on ADE pairs of image and class mask: pixels are named, measured by mIoU, exported, quantized and used."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from mask2former_mcp.formats import panoptic


@pytest.fixture(scope="module")
def ade(belt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` and `val/` of the belt with class masks (a pixel is its category's id) in place of segments."""
    root = tmp_path_factory.mktemp("ade")
    for split in ("train", "val"):
        source, folder = belt / split, root / split
        (folder / "masks").mkdir(parents=True)
        shutil.copytree(source / "images", folder / "images")
        content = json.loads((source / "annotations_panoptic.json").read_text())
        file_of = {image["id"]: image["file_name"] for image in content["images"]}
        pairs = []
        for row in content["annotations"]:
            ids = panoptic.read_ids(source / "images_panoptic" / row["file_name"])
            classes = np.zeros(ids.shape, dtype=np.uint8)
            for segment in row["segments_info"]:
                classes[ids == segment["id"]] = segment["category_id"]
            Image.fromarray(classes).save(folder / "masks" / row["file_name"])
            pairs.append({"img": f"images/{file_of[row['image_id']]}", "segm": f"masks/{row['file_name']}"})
        (folder / "annotations.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs) + "\n")
        shutil.copy(source / "label_map_panoptic.json", folder / "label_map.json")
    return root


@pytest.mark.slow  # five jobs, each a process that imports torch
def test_from_pairs_of_image_and_mask_to_a_model_that_names_pixels(
    walk: Any, ade: Path, belt: Path, tiny_training: dict[str, Any]
) -> None:
    async def steps(user: Any) -> None:
        asked = {**tiny_training, "train_dataset": str(ade), "automl_policy": "off", "num_epochs": 1}
        train = await user.run("train", **asked)
        assert "mIoU" in train["metrics"]
        assert not {"PQ", "AP"} & train["metrics"].keys()
        parent = {"parent_job_id": train["job_id"]}

        evaluated = await user.run("evaluate", **parent)
        assert evaluated["metrics"]["mIoU"] == train["metrics"]["mIoU"]

        exported = await user.run("export", **parent, input_width=96, input_height=96)
        graph = next(p for name, p in (await user.files(exported["job_id"])).items() if name.endswith(".onnx"))
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (scores,) = session.run(None, {"inputs": np.zeros((2, 3, 96, 96), np.float32)})
        assert scores.shape == (2, 9, 96, 96)

        quantized = await user.run("quantize", **parent)
        used = await user.run(
            "inference", parent_job_id=quantized["job_id"], inference_dataset=str(belt / "test" / "images")
        )
        files = await user.files(used["job_id"])
        masks = [path for name, path in files.items() if name.startswith("inference/semantic/")]
        assert len(masks) == 2
        known = {row["id"] for row in json.loads((ade / "train" / "label_map.json").read_text())}
        for path in masks:
            with Image.open(path) as mask:
                assert mask.size == (96, 96)
                assert set(np.unique(np.asarray(mask)).tolist()) <= known

    walk(steps)
