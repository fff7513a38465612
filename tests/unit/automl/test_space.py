"""The search space: from the schema, around the resolved values, inside the law."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask2former_mcp import bundle
from mask2former_mcp.automl.derive import derive
from mask2former_mcp.automl.legal import legal
from mask2former_mcp.automl.space import Parameter, Space
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.planning.validate import check_schema
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.presets import PRESETS

PACKAGED = bundle.load()
SCHEMA, TEMPLATE = PACKAGED.schema("train"), PACKAGED.template("train")
LR, MULTIPLIER, DECAY = "train.optim.lr", "train.optim.backbone_multiplier", "train.optim.weight_decay"


def spec(**changes: Any) -> dict[str, Any]:
    values = dict(TEMPLATE)
    for key, value in changes.items():
        values = dotted.with_value(values, key.replace("__", "."), value)
    return values


def mini() -> dict[str, Any]:
    values = dict(TEMPLATE)
    for key, value in PRESETS["mini"].items():
        values = dotted.with_value(values, key, value)
    return values


def raw_schema(**leaves: dict[str, Any]) -> dict[str, Any]:
    """Another bundle's schema: no ranges of ours."""
    return {"properties": {"train": {"properties": leaves}}}


def by_key(space: Space) -> dict[str, Parameter]:
    return {parameter.key: parameter for parameter in space.parameters}


def test_left_alone_a_study_varies_the_three_rates_a_decade_either_way_clipped_to_the_bounds() -> None:
    found = by_key(derive(SCHEMA, TEMPLATE))
    assert set(found) == {LR, MULTIPLIER, DECAY}
    assert all(parameter.log for parameter in found.values())
    assert (found[LR].low, found[LR].high) == pytest.approx((2e-5, 2e-3))
    assert (found[MULTIPLIER].low, found[MULTIPLIER].high) == pytest.approx((0.01, 1.0))


def test_the_ranges_follow_the_resolved_value_so_a_small_network_is_inside_its_own_space() -> None:
    found = by_key(derive(SCHEMA, mini()))
    assert (found[LR].low, found[LR].high) == pytest.approx((2e-4, 2e-2))
    assert (found[MULTIPLIER].low, found[MULTIPLIER].high) == pytest.approx((0.1, 1.0))


def test_resolution_and_architecture_are_left_out_with_the_reason() -> None:
    left = derive(SCHEMA, TEMPLATE).left_out
    assert "resolution" in left["dataset.augmentation.train_max_size"]
    assert "off unless asked" in left["model.mask_former.dec_layers"]


def test_a_rate_of_zero_is_left_out_because_nothing_says_how_far_to_go() -> None:
    space = derive(SCHEMA, spec(train__optim__weight_decay=0.0))
    assert DECAY not in space.keys
    assert "no place to search" in space.left_out[DECAY]


def test_architecture_may_be_searched_when_it_is_named_and_then_only_what_is_named() -> None:
    wishes = {"model.mask_former.hidden_dim": True, "model": {"mask_former": {"dec_layers": {}}}}
    space = derive(SCHEMA, mini(), wishes=wishes)
    found = by_key(space)
    assert set(found) == {"model.mask_former.hidden_dim", "model.mask_former.dec_layers"}
    assert 64 in found["model.mask_former.hidden_dim"].choices  # the resolved value is always inside
    assert found["model.mask_former.dec_layers"].low == 4


def test_shorthand_names_and_tao_words_are_read() -> None:
    wishes = {"learning_rate": {"valid_min": 1e-4, "valid_max": 1e-3, "log": True}, "batch_size": {"options": [1, 2]}}
    found = by_key(derive(SCHEMA, TEMPLATE, wishes=wishes, shorthand=PACKAGED.shorthand))
    assert (found[LR].low, found[LR].high, found[LR].log) == (1e-4, 1e-3, True)
    assert found["dataset.train.batch_size"].choices == (1, 2)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"train.optim.lr": {"min": 1e-4, "max": 2.0}}, "2.0 is not legal.*above 0 .. 1"),
        ({"train.optim.lr": {"min": 0.0, "max": 0.1}}, "0.0 is not legal"),
        ({"train.optim.lr": {"min": 0.1, "max": 0.01}}, "is not one"),
        ({"train.optim.lr": {"minimum": 0.1}}, "unknown words minimum"),
        ({"train.optim.lr": 3}, "is 3"),
        ({"train.optim.lr": [0.1]}, "two different values"),
        ({"train.optim.lr": [0.1, 5]}, "5 is not legal"),
        ({"train.optim.lrr": True}, "no key of the train spec.*train.optim.lr"),
        ({"model.mask_former.hidden_dim": [64, 100]}, "100 is not legal.*multiple of 8"),
        ({"train.optim.lr_scheduler": {"min": 0, "max": 1}}, "takes options"),
        ({"train.optim.lr_scheduler": ["MultiStep", "Cosine"]}, "'Cosine' is not legal.*MultiStep, Warmuppoly"),
        ({"dataset.augmentation.test_min_size": [512, 640]}, "metric is measured"),
        ({"model.sem_seg_head.num_classes": [5, 6]}, "cannot be searched.*annotations"),
        ({"train.optim.momentum": True}, "no effect"),
        ({"dataset.train.img_dir": True}, "free text"),
        ({"train.optim.milestones": True}, "a list"),
        ({}, "is empty"),
        ({"train.optim.lr": {"choices": [0.1, 0.2], "weights": [1]}}, "weights"),
    ],
)
def test_a_wish_outside_the_schema_is_an_error_with_the_legal_range(wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        derive(SCHEMA, TEMPLATE, wishes=wishes)
    assert re.search(said, f"{caught.value.message} {caught.value.fix}", re.DOTALL)


def test_batches_larger_than_the_training_split_are_not_proposed() -> None:
    wishes = {"dataset.train.batch_size": True}
    cut = derive(SCHEMA, TEMPLATE, wishes=wishes, caps={"dataset.train.batch_size": 5})
    assert by_key(cut)["dataset.train.batch_size"].choices == (1, 2, 4)
    assert cut.cut["dataset.train.batch_size"].startswith("1, 2, 4, not 1, 2, 4, 8")
    space = derive(SCHEMA, TEMPLATE, wishes=wishes, caps={"dataset.train.batch_size": 1})
    assert "too few images" in space.left_out["dataset.train.batch_size"]


@pytest.mark.parametrize(
    ("parameter", "kept"),
    [
        (Parameter(key="b", kind="whole", low=1, high=16, step=2), "1 .. 5 in steps of 2"),
        (Parameter(key="b", kind="power", low=0, high=4), "1 .. 4 (powers of 2)"),
        (Parameter(key="b", kind="weighted", choices=(2, 4, 8), weights=(1, 3, 1)), "2, 4"),
        (Parameter(key="b", kind="whole", low=6, high=16), None),
        (Parameter(key="b", kind="choice", choices=(4, 8)), None),
    ],
)
def test_a_range_is_cut_at_a_value_that_it_has(parameter: Parameter, kept: str | None) -> None:
    found = parameter.capped(6)
    assert (found.span() if found else None) == kept
    if found is not None and found.kind == "weighted":
        assert found.weights == (1, 3)


# --- another bundle's schema -----------------------------------------------------------------------------------------


def test_a_raw_schema_never_spans_a_range_only_because_it_is_legal() -> None:
    on = {"automl_enabled": True}
    schema = raw_schema(
        lr={"type": "number", "minimum": 0, "maximum": 1, "math_cond": "> 0.0", **on},
        momentum={"type": "number", "minimum": 0, "maximum": 1, **on},
        layers={"type": "integer", "minimum": 1, "maximum": 50, **on},
        width={"type": "integer", "minimum": 8, "math_cond": "/ 8", **on},
        kind={"type": "string", "enum": ["a", "b"], "option_weights": [3, 1], **on},
        max_size={"type": "integer", "minimum": 32, **on},
        other={"type": "number"},
    )
    values = {"lr": 2e-4, "momentum": 0.9, "layers": 6, "width": 64, "kind": "a", "max_size": 640, "other": 1.0}
    values = {"train": values}
    space = derive(schema, values)
    found = by_key(space)
    assert (found["train.lr"].low, found["train.lr"].high, found["train.lr"].log) == pytest.approx((2e-5, 2e-3, True))
    assert (found["train.momentum"].low, found["train.momentum"].high) == pytest.approx((0.45, 1.0))
    assert (found["train.layers"].low, found["train.layers"].high) == (3, 12)
    assert found["train.kind"].weights == (3, 1)
    assert "train.max_size" in space.left_out
    assert not {"train.width", "train.other"} & set(found)  # width: a word for sizes; other: not enabled


def test_conditions_of_the_schema_hold_for_every_proposal() -> None:
    schema = raw_schema(
        eight={"type": "integer", "minimum": 5, "maximum": 100, "math_cond": "/ 8", "automl_enabled": True},
        power={"type": "integer", "minimum": 1, "maximum": 100, "math_cond": "^ 2", "automl_enabled": True},
        above={"type": "number", "math_cond": ">0.5", "maximum": 2, "automl_enabled": True},
        low={"type": "integer", "minimum": 1, "maximum": 20, "automl_enabled": True},
        high={"type": "integer", "minimum": 1, "maximum": 40, "math_cond": "> depends_on", "depends_on": "train.low",
              "automl_enabled": True},
    )  # fmt: skip
    values = {"train": {"eight": 24, "power": 8, "above": 0.8, "low": 10, "high": 12}}
    space = derive(schema, values)
    assert space.keys[-1] == "train.high"
    found = by_key(space)
    assert (found["train.eight"].low, found["train.eight"].high, found["train.eight"].step) == (16, 48, 8)
    assert found["train.power"].span() == "4 .. 16 (powers of 2)"
    assert found["train.above"].low > 0.5
    raw = {**space.encode({key: dotted.get(values, key) for key in space.keys}), "train.low": 18, "train.high": 7}
    decoded = space.decode(raw)
    assert decoded["train.high"] == 19


def test_a_relation_to_a_key_that_is_not_searched_becomes_a_floor_or_leaves_the_key_out() -> None:
    leaf = {"type": "integer", "minimum": 1, "maximum": 40, "math_cond": "> depends_on", "automl_enabled": True}
    schema = raw_schema(low={"type": "integer"}, high={**leaf, "depends_on": "train.low"})
    space = derive(schema, {"train": {"low": 9, "high": 12}})
    assert space.decode({"train.high": 6}) == {"train.high": 10}
    assert "must exceed train.low" in derive(schema, {"train": {"low": 30, "high": 12}}).left_out["train.high"]


def test_an_unknown_condition_is_left_out_not_guessed() -> None:
    schema = raw_schema(odd={"type": "integer", "math_cond": "% 3", "automl_enabled": True})
    assert "not understood" in derive(schema, {"train": {"odd": 3}}).left_out["train.odd"]


def test_declared_ranges_of_a_known_network_are_used_for_a_bundle_without_them() -> None:
    schema = raw_schema(lr={"type": "number", "minimum": 0, "maximum": 1, "automl_enabled": True})
    declared = {"train.lr": {"enabled": True, "scale": "log", "factor": 3.0}}
    found = by_key(derive(schema, {"train": {"lr": 0.3}}, declared=declared))
    assert (found["train.lr"].low, found["train.lr"].high) == pytest.approx((0.1, 0.9))


# --- properties ------------------------------------------------------------------------------------------------------


@given(lr=st.floats(1e-6, 1.0, exclude_max=True), share=st.floats(0, 1), multiplier=st.floats(1e-3, 1.0))
def test_every_proposal_is_legal_and_the_resolved_value_is_inside(lr: float, share: float, multiplier: float) -> None:
    values = spec(train__optim__lr=lr, train__optim__backbone_multiplier=multiplier)
    space = derive(SCHEMA, values)
    raw = {p.key: math.exp(math.log(p.low) + share * (math.log(p.high) - math.log(p.low))) for p in space.parameters}
    proposed = dict(values)
    for key, value in space.decode(raw).items():
        proposed = dotted.with_value(proposed, key, value)
    check_schema(proposed, SCHEMA, {})
    assert all(p.contains(dotted.get(values, p.key)) for p in space.parameters)


@given(st.sampled_from(["real", "whole", "power"]), st.integers(1, 6), st.integers(1, 30), st.floats(0, 1))
def test_decoding_what_was_encoded_gives_it_back(kind: Any, low: int, width: int, share: float) -> None:
    parameter = Parameter(key="k", kind=kind, low=low, high=low + width, step=1, base=2)
    raw = low + share * width if kind == "real" else low + round(share * width)
    value = parameter.decode(raw)
    assert parameter.decode(parameter.encode(value)) == value


def test_weighted_options_come_in_their_proportion() -> None:
    parameter = Parameter(key="k", kind="weighted", choices=("a", "b", "c"), weights=(1.0, 0.0, 3.0))
    drawn = [parameter.decode(i / 1000) for i in range(1000)]
    assert (drawn.count("a"), drawn.count("b"), drawn.count("c")) == (250, 0, 750)
    assert parameter.decode(parameter.encode("c")) == "c"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_legal_says_what_the_schema_says(value: float) -> None:
    leaf = {"type": "number", "minimum": 0.0, "exclusiveMinimum": 0.0, "maximum": 1.0, "math_cond": "> 0.0"}
    assert legal(leaf).allows(value) == (0.0 < value <= 1.0)
