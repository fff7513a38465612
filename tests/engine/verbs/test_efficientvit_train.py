"""A tiny run with an EfficientViT backbone, and its checkpoint in use: measured, exported, and the export measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml

from mask2former_mcp.engine import session


@pytest.mark.slow  # tracing takes half a minute
def test_it_trains_is_measured_and_leaves_for_onnx(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    spec = tiny(model__backbone__type="efficientvit", model__backbone__efficientvit__name="b0", train__num_epochs=1)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))

    def act(action: str, *overrides: str) -> int:
        return session.run(action, tmp_path / "spec.yaml", [f"results_dir={tmp_path}", *overrides])

    assert act("train") == 0
    latest, file = tmp_path / "train" / "mask2former_model_latest.pth", tmp_path / "model.onnx"
    assert act("evaluate", f"evaluate.checkpoint={latest}") == 0
    measured = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())["overall"]

    size = ("export.input_height=64", "export.input_width=64")
    assert act("export", f"export.checkpoint={latest}", f"export.onnx_file={file}", *size) == 0
    report = json.loads((tmp_path / "export" / "report.json").read_text())
    assert report["checked_batch_sizes"] == [1, 2]
    assert report["max_difference"] < 1e-3
    assert {domain.domain for domain in onnx.load(str(file)).opset_import} == {""}  # standard operators only
    runtime = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(5, 3, 64, 64)).astype(np.float32)
    together = runtime.run(None, {"inputs": images})
    apart = [runtime.run(None, {"inputs": image[None]}) for image in images]
    for place, found in enumerate(together[:3]):  # the classes after them are whole numbers, and may flip
        assert np.abs(found - np.concatenate([one[place] for one in apart])).max() < 1e-3

    assert act("evaluate", f"evaluate.checkpoint={file}", f"evaluate.results_dir={tmp_path / 'graph'}") == 0
    again = json.loads((tmp_path / "graph" / "metrics.json").read_text())["overall"]
    assert again["mIoU"] == pytest.approx(measured["mIoU"], abs=0.02)
