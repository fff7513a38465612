"""`evaluate` and `inference` with exported graphs, run in onnxruntime, beside the checkpoint they were made of."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from mask2former_mcp.engine import export, onnx_graph, session, trained
from mask2former_mcp.engine.graph import OUTPUTS
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]
MODES = ("semantic", "instance", "panoptic")


def act(action: str, folder: Path, spec: dict[str, Any], *overrides: str) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return session.run(action, folder / "spec.yaml", [f"results_dir={folder}", *overrides])


def last(folder: Path, action: str) -> str:
    return json.loads((folder / action / "status.json").read_text().splitlines()[-1])["message"]


@pytest.fixture(scope="module")
def graphs(tiny: Spec, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One ONNX file per mode, 64 x 64, batch 2, by the quick exporter: else the graph that `export` writes."""
    folder = tmp_path_factory.mktemp("graphs")
    for mode in MODES:
        spec = load("evaluate", {**tiny(model__mode=mode), "evaluate": {"checkpoint": str(weights)}})
        known = trained.open_checkpoint(spec, str(weights))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                export.Exportable(known.model, mode, 24).eval(), (torch.zeros(2, 3, 64, 64),),
                str(folder / f"{mode}.onnx"), input_names=["inputs"], output_names=list(OUTPUTS[mode]),
                opset_version=18, dynamo=False,
            )  # fmt: skip
        assert known.classes is not None
        onnx_graph.name_classes(folder / f"{mode}.onnx", known.classes)
    return {mode: folder / f"{mode}.onnx" for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_a_graph_measures_like_its_checkpoint(
    tiny: Spec, weights: Path, graphs: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    spec = tiny(model__mode=mode)
    assert act("evaluate", tmp_path / "a", spec, f"evaluate.checkpoint={weights}") == 0
    assert act("evaluate", tmp_path / "b", spec, f"evaluate.checkpoint={graphs[mode]}", "evaluate.batch_size=3") == 0
    ours, graph = (json.loads((tmp_path / x / "evaluate" / "metrics.json").read_text())["overall"] for x in ("a", "b"))
    assert set(ours) - set(graph) == {"val_loss"}
    for name in {"semantic": ["mIoU"], "instance": ["AP50"], "panoptic": ["PQ", "AP50"]}[mode]:
        assert graph[name] == pytest.approx(ours[name], abs=2e-3), name


@pytest.mark.parametrize("mode", MODES)
def test_inference_with_a_graph_writes_results_at_the_original_sizes(
    tiny: Spec, graphs: dict[str, Path], shapes: Path, tmp_path: Path, mode: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, size in enumerate([(64, 64), (150, 70), (40, 90)]):
        with Image.open(shapes / "val" / "images" / f"{i:03d}.png") as image:
            image.resize(size).save(photos / f"{i}.png")
    spec = tiny(model__mode=mode, dataset__test__img_dir=str(photos), dataset__test__batch_size=2)
    assert act("inference", tmp_path, spec, f"inference.checkpoint={graphs[mode]}") == 0
    out = tmp_path / "inference"
    assert len(list(out.glob("*.jpg"))) == 3
    kinds = {"semantic": ["semantic"], "instance": [], "panoptic": ["semantic", "panoptic"]}[mode]
    for kind in kinds:
        with Image.open(out / kind / "1.png") as picture:
            assert picture.size == (150, 70)
    if mode != "semantic":
        rows = json.loads((out / "instances.json").read_text())
        assert {tuple(row["segmentation"]["size"]) for row in rows} <= {(64, 64), (70, 150), (90, 40)}
        assert {row["category_id"] for row in rows} <= {3, 5}


def test_a_graph_of_another_mode_or_class_count_says_what_to_set(
    tiny: Spec, graphs: dict[str, Path], tmp_path: Path
) -> None:
    assert act("evaluate", tmp_path / "a", tiny(), f"evaluate.checkpoint={graphs['semantic']}") == 1
    assert "set model.mode=semantic" in last(tmp_path / "a", "evaluate")
    wrong = tiny(model__sem_seg_head__num_classes=7)
    assert act("evaluate", tmp_path / "b", wrong, f"evaluate.checkpoint={graphs['panoptic']}") == 1
    assert "num_classes=3" in last(tmp_path / "b", "evaluate")


def test_a_file_that_is_no_graph_is_named(tiny: Spec, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    assert act("evaluate", tmp_path / "a", tiny(), f"evaluate.checkpoint={tmp_path / 'junk.onnx'}") == 1
    assert "junk.onnx" in last(tmp_path / "a", "evaluate")
    assert act("inference", tmp_path / "b", tiny(), f"inference.checkpoint={tmp_path / 'none.onnx'}") == 1
    assert "no such ONNX file" in last(tmp_path / "b", "inference")
