"""Plans of `export`, `quantize` and `gen_trt_engine`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former_mcp.errors import DatasetError, InvalidRequest
from mask2former_mcp.lineage import Parent
from mask2former_mcp.spec import dotted


def said(plan: Any, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


def test_export_names_its_file_in_the_results(plan: Any, trained: Any) -> None:
    made = plan(
        "export", parent_job_id=trained.job_id, mode="semantic", input_width=192, input_height=160, batch_size=2
    )
    assert made.spec["export"]["onnx_file"] == "{results_dir}/export/model.onnx"
    assert made.artifacts == ("export/model.onnx",)
    assert made.spec["model"]["mode"] == "semantic"
    assert (made.spec["export"]["input_width"], made.spec["export"]["batch_size"]) == (192, 2)
    named = plan("export", parent_job_id=trained.job_id, overrides={"export.onnx_file": "shop.onnx"})
    assert named.artifacts == ("export/shop.onnx",)


def test_transformers_export_plans_a_folder(plan: Any, trained: Any) -> None:
    made = plan("export", parent_job_id=trained.job_id, format="transformers")
    assert made.spec["export"]["format"] == "transformers"
    assert made.artifacts == ("export/transformers/model.safetensors",)
    assert not said(made, "cannot start yet")
    with pytest.raises(InvalidRequest, match="runtime=tao"):
        plan("export", parent_job_id=trained.job_id, format="transformers", runtime="tao")


def test_an_export_may_replace_a_file_but_not_under_tao(plan: Any, trained: Any) -> None:
    over = {"overrides": {"export.overwrite": True}}
    assert plan("export", parent_job_id=trained.job_id, **over).spec["export"]["overwrite"] is True
    with pytest.raises(InvalidRequest, match=r"export\.overwrite is our engine's"):
        plan("export", parent_job_id=trained.job_id, runtime="tao", **over)


def test_the_spec_for_tao_has_no_key_that_only_our_engine_knows(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"weights")
    asked = {"checkpoint": str(tmp_path / "weights.pth"), "overrides": {"num_classes": 3}, "format": "onnx"}
    ours = plan("export", platform="docker", **asked)
    tao = plan("export", platform="docker", runtime="tao", **asked)
    assert ours.spec["export"]["format"] == ours.spec_overrides["export.format"] == "onnx"
    assert "format" not in tao.spec["export"]
    assert "export.format" not in tao.spec_overrides
    facts = Path(__file__).parents[2] / "facts" / "templates" / "spec_template_export.yaml"
    known = dotted.flatten(yaml.safe_load(facts.read_text()))
    assert dotted.flatten(tao.spec).keys() <= known.keys()
    assert tao.artifacts == ("export/model.onnx",)


def test_a_quantized_model_is_measured_used_and_exported(
    plan: Any, trained: Any, exported: Any, shelf: Any, home: Path
) -> None:
    made = plan("quantize", parent_job_id=trained.job_id)
    assert said(made, "torchao: 8-bit weights")
    file = home / "jobs" / "quantize-ffff6666" / "results" / "quantize" / "quantized_model_torchao.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"q")
    shelf.jobs["quantize-ffff6666"] = Parent(
        "quantize-ffff6666", "quantize", made.spec, file.parents[1], {}, "succeeded", made.datasets
    )
    for action in ("evaluate", "inference", "export"):
        path = plan(action, parent_job_id="quantize-ffff6666").spec[action]["checkpoint"]
        assert path.endswith("quantize-ffff6666/results/quantize/quantized_model_torchao.pth")
    assert said(plan("export", parent_job_id="quantize-ffff6666"), "full float32 again")
    static = {"backend": "modelopt.onnx", "quantize_mode": "static_ptq", "overrides": {"quantize.algorithm": "max"}}
    made = plan("quantize", parent_job_id=exported.job_id, **static)
    assert said(made, "otherwise by onnxruntime's")
    assert said(made, "modelopt.onnx, 8-bit weights and activations")
    static["overrides"] = {"quantize.algorithm": "awq_clip"}
    assert said(plan("quantize", parent_job_id=exported.job_id, **static), "modelopt.onnx, 4-bit weights")


def test_an_engine_of_a_quantized_graph_has_the_arithmetic_of_the_graph(plan: Any, exported: Any, ended: Any) -> None:
    made = plan("quantize", parent_job_id=exported.job_id, backend="modelopt.onnx")
    ended(made, "quantize-abab7777", "quantize/quantized_model.onnx")
    built = plan("gen_trt_engine", parent_job_id="quantize-abab7777")
    assert built.spec["gen_trt_engine"]["onnx_file"].endswith("quantize-abab7777/results/quantize/quantized_model.onnx")
    with pytest.raises(InvalidRequest, match="a quantized graph says itself"):
        plan("gen_trt_engine", parent_job_id="quantize-abab7777", data_type="FP16")


def test_what_simulates_quantized_arithmetic_is_not_exported(plan: Any, trained: Any, ended: Any) -> None:
    made = plan("quantize", parent_job_id=trained.job_id, backend="modelopt.pytorch")
    ended(made, "quantize-abab8888", "quantize/quantized_model_modelopt.pytorch.pth")
    with pytest.raises(InvalidRequest, match="which an export would lose"):
        plan("export", parent_job_id="quantize-abab8888")


def test_settings_of_layers_are_for_torchao_only(plan: Any, trained: Any) -> None:
    layers = {"overrides": {"quantize.layers": [{"module_name": "backbone"}]}}
    assert plan("quantize", parent_job_id=trained.job_id, **layers).spec["quantize"]["layers"]
    with pytest.raises(InvalidRequest, match=r"quantize\.layers is read by backend=torchao only"):
        plan("quantize", parent_job_id=trained.job_id, backend="modelopt.pytorch", **layers)


def test_quantize_and_engines_plan_fully(plan: Any, trained: Any, engine: Any, exported: Any) -> None:
    made = plan("quantize", parent_job_id=trained.job_id)
    assert made.spec["quantize"]["model_path"].endswith("model_epoch_001_step_00010.pth")
    assert made.spec["model"]["sem_seg_head"]["num_classes"] == 3
    built = plan("gen_trt_engine", parent_job_id=exported.job_id, data_type="FP16", max_batch_size=4, opt_batch_size=2)
    assert built.spec["gen_trt_engine"]["onnx_file"] == "{home}/jobs/export-bbbb2222/results/export/model.onnx"
    assert built.spec["gen_trt_engine"]["trt_engine"] == "{results_dir}/gen_trt_engine/model.engine"
    assert built.spec["gen_trt_engine"]["tensorrt"]["data_type"] == "FP16"
    run = plan("evaluate", parent_job_id=engine.job_id)
    assert run.spec["evaluate"]["trt_engine"].endswith("gen_trt_engine/model.engine")
    assert run.spec["evaluate"]["checkpoint"] == ""
    assert said(run, "needs the package tensorrt")
    assert run.artifacts == ("evaluate/status.json",)


def test_quantize_measures_on_the_parents_validation_data(
    plan: Any, trained: Any, shelf: Any, home: Path, data: Path
) -> None:
    made = plan("quantize", parent_job_id=trained.job_id)
    assert made.spec["dataset"]["val"]["panoptic_json"] == str(data / "shop" / "val" / "annotations_panoptic.json")
    assert made.spec["dataset"]["quant_calibration_dataset"]["images_dir"] == str(data / "shop" / "train" / "images")
    assert not said(made, "no drop of the metric")
    for folder, job_id in (("alone", "train-hhhh0000"), ("ade", "train-hhhh1111")):
        first = plan("train", train_dataset=str(data / folder), preset="mini")
        results = home / "jobs" / job_id / "results"
        (results / "train").mkdir(parents=True)
        (results / "train" / "model_epoch_000_step_00005.pth").write_bytes(b"w")
        shelf.jobs[job_id] = Parent(job_id, "train", first.spec, results, {}, "succeeded", first.datasets)
        made = plan("quantize", parent_job_id=job_id)
        measured = plan("evaluate", parent_job_id=job_id)
        assert made.staging[0].options == measured.staging[0].options
        assert made.spec["dataset"]["val"] == measured.spec["dataset"]["val"]
        assert made.spec["dataset"]["quant_calibration_dataset"]["images_dir"] == str(data / folder / "images")


def test_quantize_without_validation_data_says_that_nothing_is_measured(
    plan: Any, trained: Any, shelf: Any, data: Path
) -> None:
    gone = {**trained.datasets, "eval": {"uri": str(data / "gone"), "format": "coco_panoptic"}}
    shelf.jobs[trained.job_id] = replace(trained, datasets=gone)
    made = plan("quantize", parent_job_id=trained.job_id)
    assert said(made, f"no drop of the metric will be measured: {data / 'gone'} is gone")
    assert not made.spec["dataset"]["val"]["panoptic_json"]
    with pytest.raises(DatasetError, match="does not exist"):
        plan("quantize", parent_job_id=trained.job_id, eval_dataset=str(data / "gone"))
