"""A mapping becomes a typed spec through one door, and what is wrong with it is said key by key."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import ACTIONS, Experiment, leaves, load
from mask2former_mcp.spec.presets import PRESETS
from mask2former_mcp.spec.template import template

GIVEN: dict[str, Any] = {
    "evaluate": {"checkpoint": "a.pth"},
    "inference": {"checkpoint": "a.pth"},
    "export": {"checkpoint": "a.pth", "onnx_file": "a.onnx"},
    "quantize": {"model_path": "a.pth"},
    "gen_trt_engine": {"onnx_file": "a.onnx", "trt_engine": "a.engine"},
}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_empty_mapping_means_the_template(action: str) -> None:
    said = {action: GIVEN[action]} if action in GIVEN else {}
    whole = template(action)
    filled = {**whole, **{name: {**whole[name], **block} for name, block in said.items()}}
    assert load(action, said) == load(action, filled)


def test_a_loaded_spec_written_and_read_again_is_the_same() -> None:
    spec = load("train", {"train": {"optim": {"lr": 1e-3}}, "dataset": {"val": {"target_size": [64, 96]}}})
    text = yaml.safe_dump(spec.model_dump(mode="json"))
    assert load("train", yaml.safe_load(text)) == spec


@given(st.floats(min_value=1e-9, max_value=1.0), st.integers(1, 10**6), st.booleans())
def test_values_in_bounds_come_out_as_they_went_in(rate: float, classes: int, contiguous: bool) -> None:
    flat = {
        "train.optim.lr": rate,
        "model.sem_seg_head.num_classes": classes,
        "dataset.contiguous_id": contiguous,
    }
    spec = load("train", dotted.unflatten(flat))
    assert (spec.train.optim.lr, spec.model.sem_seg_head.num_classes) == (rate, classes)
    assert spec.dataset.contiguous_id is contiguous


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("train.num_epoch", 3, "did you mean train.num_epochs"),
        ("train.num_epochs", 0, "greater than or equal to 1"),
        ("train.num_epochs", "10", "valid integer"),
        ("train.num_epochs", True, "valid integer"),
        ("train.num_epochs", 2.5, "valid integer"),
        ("train.optim.lr", 0, "greater than 0"),
        ("train.optim.lr", 1.5, "less than or equal to 1"),
        ("train.optim.lr", "fast", "valid number"),
        ("train.optim.lr", True, "valid number"),
        ("train.optim.lr", float("nan"), "finite"),
        ("train.optim.weight_decay", -0.1, "greater than or equal to 0"),
        ("train.optim.type", "SGD", "AdamW"),
        ("train.precision", "int8", "'fp16', 'fp32' or 'bf16'"),
        ("train.gpu_ids", [], "at least 1"),
        ("model.mask_former.hidden_dim", 100, "multiple of 8"),
        ("model.backbone.swin.type", "huge", "'tiny', 'small', 'base' or 'large'"),
        ("model.backbone.swin.depths", [2, 2, 6], "at least 4"),
        ("model.backbone.efficientvit.name", "m1", "'b0'"),
        ("dataset.train.type", "voc", "'coco', 'ade' or 'coco_panoptic'"),
        ("dataset.val.target_size", [640], "must be empty (off) or [height, width]"),
        ("dataset.augmentation.train_crop_size", [16, 640], "greater than or equal to 32"),
        ("dataset.pixel_std", [0.1, 0.0, 0.1], "greater than 0"),
        ("evaluate.batch_size", 0, "must be -1"),
        ("evaluate.batch_size", -2, "greater than or equal to -1"),
        ("quantize.device", "tpu", "pattern"),
        ("gen_trt_engine.tensorrt.data_type", "INT8", "'FP32' or 'FP16'"),
        ("gen_trt_engine.tensorrt.data_type", "fp16", "'FP32' or 'FP16'"),
    ],
)
def test_a_bad_value_is_answered_with_its_key_and_the_rule(key: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the message is checked below)
        load("train", dotted.unflatten({key: value}))
    message = str(refused.value)
    assert key in message
    assert rule in message


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the message is checked below)
        load("train", {"train": {"num_epochs": 0, "seed": -2}, "modell": {}})
    assert len(str(refused.value).splitlines()) == 3


def test_an_exponent_that_yaml_reads_as_text_is_a_number() -> None:
    assert load("train", yaml.safe_load("train: {optim: {lr: 2e-3}}")).train.optim.lr == 2e-3


@pytest.mark.parametrize("action", sorted(GIVEN))
def test_what_must_be_given_is_asked_for_by_its_own_action_only(action: str) -> None:
    with pytest.raises(ValueError, match=rf"{action}\..*must be given for {action}"):
        load(action, {})
    load("train", {})


@pytest.mark.parametrize("action", ["evaluate", "inference"])
def test_an_engine_file_stands_in_for_the_checkpoint(action: str) -> None:
    load(action, {action: {"trt_engine": "a.engine"}})


def test_an_unknown_action_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown action 'prune': one of train"):
        load("prune", {})


def test_a_loaded_spec_cannot_be_changed() -> None:
    spec = load("train", {})
    with pytest.raises(ValueError, match="frozen"):
        spec.train.num_epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_holds_known_keys_and_a_legal_spec(name: str) -> None:
    assert PRESETS[name].keys() <= set(leaves())
    load("train", dotted.unflatten(PRESETS[name]))


def test_every_leaf_has_a_help_text() -> None:
    def helps(model: type[Any]) -> list[str | None]:
        return [field.description for field in model.model_fields.values()]

    sections = {Experiment}
    for model in list(sections):
        _collect(model, sections)
    texts = [text for model in sections for text in helps(model)]
    assert all(text and text.endswith(".") for text in texts)


def _collect(model: type[Any], found: set[type[Any]]) -> None:
    for field in model.model_fields.values():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            found.add(inner)
            _collect(inner, found)


def test_the_spec_is_imported_without_an_ml_library() -> None:
    heavy = "{'torch', 'numpy', 'jsonschema'}"
    code = f"import sys; import mask2former_mcp.spec.experiment; print(sorted({heavy} & set(sys.modules)))"
    source = Path(__file__).resolve().parents[3] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(source)}
    )
    assert done.stdout.strip() == "[]", done.stderr
