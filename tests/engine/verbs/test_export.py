"""`export` of a tiny trained network in the three modes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import yaml
from transformers import Mask2FormerForUniversalSegmentation

from mask2former_mcp.engine import export, initial_weights, session
from mask2former_mcp.engine.model.network import build
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]


def act(action: str, folder: Path, spec: dict[str, Any], *overrides: str) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return session.run(action, folder / "spec.yaml", [f"results_dir={folder}", *overrides])


def lines(folder: Path, action: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / action / "status.json").read_text().splitlines()]


@pytest.mark.slow  # half a minute of tracing a mode
@pytest.mark.parametrize(
    ("mode", "outputs"),
    [
        ("semantic", {"pred_masks": (3, 3, 64, 96)}),
        ("instance", {"pred_masks": (3, 24, 64, 96), "pred_scores": (3, 24), "pred_classes": (3, 24)}),
        (
            "panoptic",
            {
                "prob_masks": (3, 8, 64, 96),
                "pred_masks": (3, 8, 64, 96),
                "pred_scores": (3, 8),
                "pred_classes": (3, 8),
            },
        ),
    ],
)
def test_an_export_runs_in_onnxruntime_at_any_batch_size_with_tao_names(
    tiny: Spec, weights: Path, tmp_path: Path, mode: str, outputs: dict[str, tuple[int, ...]]
) -> None:
    file = tmp_path / "model.onnx"
    size = ("export.input_height=64", "export.input_width=96")
    spec = tiny(model__mode=mode)
    assert act("export", tmp_path, spec, f"export.checkpoint={weights}", f"export.onnx_file={file}", *size) == 0
    report = json.loads((tmp_path / "export" / "report.json").read_text())
    assert report["mode"] == mode
    assert report["opset"] == 18
    assert report["checked_batch_sizes"] == [1, 2]
    assert report["max_difference"] < 1e-3
    assert any("raised to 18" in x["message"] for x in lines(tmp_path, "export"))
    runtime = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [o.name for o in runtime.get_outputs()] == list(outputs)
    found = runtime.run(None, {"inputs": torch.zeros(3, 3, 64, 96).numpy()})
    assert {name: value.shape for name, value in zip(outputs, found, strict=True)} == outputs


def test_export_refuses_a_file_that_exists(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"precious")
    assert act("export", tmp_path, tiny(), f"export.checkpoint={weights}", f"export.onnx_file={file}") == 1
    assert "exists already" in lines(tmp_path, "export")[-1]["message"]
    assert "export.overwrite=true" in lines(tmp_path, "export")[-1]["message"]
    assert file.read_bytes() == b"precious"


def test_a_file_is_replaced_when_told_to_and_only_by_one_that_was_checked(
    tiny: Spec, weights: Path, tmp_path: Path
) -> None:
    file, diverged = tmp_path / "model.onnx", tmp_path / "diverged.pth"
    file.write_bytes(b"precious")
    content = torch.load(weights, weights_only=True)
    next(tensor for name, tensor in content["state_dict"].items() if "class_embed" in name).fill_(torch.nan)
    torch.save(content, diverged)
    size = ("export.input_height=64", "export.input_width=64", "export.batch_size=1")
    told = (f"export.onnx_file={file}", *size, "export.overwrite=true")
    assert act("export", tmp_path, tiny(model__mode="semantic"), f"export.checkpoint={diverged}", *told) == 1
    assert "that are NaN" in lines(tmp_path, "export")[-1]["message"]
    assert file.read_bytes() == b"precious"
    assert act("export", tmp_path, tiny(model__mode="semantic"), f"export.checkpoint={weights}", *told) == 0
    assert onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).get_outputs()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_transformers_folder_is_written_once(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    overrides = (
        f"export.checkpoint={weights}",
        f"export.onnx_file={tmp_path / 'm.onnx'}",
        "export.format=transformers",
    )
    assert act("export", tmp_path, tiny(), *overrides) == 0
    folder = tmp_path / "export" / "transformers"
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "disc", "1": "box", "2": "ground"}
    assert not (tmp_path / "m.onnx").exists()
    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval().double()
    ours = build(load("export", tiny(export__checkpoint="a.pth", export__onnx_file="a.onnx"))).eval().double()
    initial_weights.load_weights(ours, weights)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        prediction, expected = ours(images), theirs(images)
    assert torch.allclose(prediction.class_logits[-1].roll(-1, -1), expected.class_queries_logits, atol=1e-6)
    assert torch.allclose(prediction.mask_logits(), expected.masks_queries_logits, atol=1e-6)
    assert act("export", tmp_path, tiny(), *overrides) == 1
    assert "exists already" in lines(tmp_path, "export")[-1]["message"]


def test_a_transformers_folder_is_replaced_whole_when_told_to(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export" / "transformers"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("precious")
    told = ("export.onnx_file=m.onnx", "export.format=transformers", "export.overwrite=true")
    assert act("export", tmp_path, tiny(), "export.checkpoint=gone.pth", *told) == 1
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert act("export", tmp_path, tiny(), f"export.checkpoint={weights}", *told) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_training_starts_from_a_folder_for_transformers(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    spec = tiny(export__checkpoint=str(weights), export__onnx_file="m.onnx", export__format="transformers")
    assert act("export", tmp_path, spec) == 0
    start = f"train.pretrained_model_path={tmp_path / 'export' / 'transformers'}"
    assert act("train", tmp_path, tiny(train__is_dry_run=True), start) == 0
    report = json.loads((tmp_path / "train" / "weights.json").read_text())
    assert report["layout"] == "transformers folder"
    assert report["missing"] == report["skipped"] == []


def test_a_size_other_than_three_channels_is_refused(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    overrides = (f"export.checkpoint={weights}", f"export.onnx_file={tmp_path / 'm.onnx'}", "export.input_channel=4")
    assert act("export", tmp_path, tiny(), *overrides) == 1
    assert "3 channels" in lines(tmp_path, "export")[-1]["message"]


def test_a_backend_that_disagrees_is_found() -> None:
    expected = torch.zeros(1, 2, 8, 8).numpy()
    difference = export._difference("pred_masks", expected + 0.01, expected)
    assert difference.largest == pytest.approx(0.01)
    assert difference.share_beyond == 1.0
    with pytest.raises(ArithmeticError, match="shape"):
        export._difference("pred_masks", expected[:, :1], expected)
    for broken in (float("nan"), float("inf")):
        wrong = expected.copy()
        wrong[0, 0, 0, 0] = broken
        with pytest.raises(ArithmeticError, match="onnxruntime gives pred_masks 1 of 128 values that are NaN or inf"):
            export._difference("pred_masks", wrong, expected)
        with pytest.raises(ArithmeticError, match="torch gives pred_masks 1 of 128"):
            export._difference("pred_masks", expected, wrong)
