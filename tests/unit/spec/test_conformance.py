"""The spec against the published facts: keys, types, defaults, bounds, choices and search flags.

Every difference that we mean stands in DEVIATIONS with its reason. A difference that is not there fails, and so does a
deviation that no longer is one.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import ACTIONS
from mask2former_mcp.spec.schema import action_schema, leaves
from mask2former_mcp.spec.skill_info import deploy_skill_info, skill_info
from mask2former_mcp.spec.template import template

FACTS = Path(__file__).resolve().parents[2] / "facts"
SPEC = json.loads((FACTS / "mask2former-spec-fields.json").read_text())
FIELDS: dict[str, dict[str, Any]] = SPEC["fields"]

METRIC = "a search that changes the test resolution changes the metric that it maximises"
INERT = "AdamW is the only optimiser and has no momentum: searching it wastes trials"
BF16 = "our engine trains in bf16; planning refuses it under runtime=tao"
POSITIVE = "the math condition '> 0.0' said in the standard's words: zero trains nothing"
MULTIPLE = "the math condition '/ 8' said in the standard's words"
AT_LEAST_ONE = "a network, batch or count below one cannot be built"
NOT_NEGATIVE = "a negative weight, ratio, index or norm means nothing"
SHARE = "a probability or a share: outside 0..1 it means nothing"
FAMILY = "free text in the facts; any other word fails late, inside the container"

FOLDER = "our engine also writes a folder for transformers; planning refuses it under runtime=tao"

OVERWRITE = "TAO's exporter refuses a file that exists, whatever it is told; planning refuses the key under runtime=tao"

SCORES = "TAO's images write no COCO results whose rows a score could choose"

ACCUMULATED = "TAO's trainer has no key for it; planning refuses it under runtime=tao"

ADDED = {
    "export.format": FOLDER,
    "export.overwrite": OVERWRITE,
    "inference.min_score": SCORES,
    "train.accumulate_grad_batches": ACCUMULATED,
}
# (key, keyword) -> why ours differs from the facts. What ours says instead stands in `OUR_VALUES`.
DEVIATIONS: dict[tuple[str, str], str] = {
    ("dataset.augmentation.test_max_size", "automl_enabled"): METRIC,
    ("dataset.augmentation.test_min_size", "automl_enabled"): METRIC,
    ("train.optim.momentum", "automl_enabled"): INERT,
    ("train.precision", "enum"): BF16,
    ("model.backbone.type", "enum"): FAMILY,
    ("model.backbone.swin.type", "enum"): FAMILY,
    ("model.backbone.efficientvit.name", "enum"): FAMILY,
    ("train.optim.lr", "exclusiveMinimum"): POSITIVE,
    ("train.optim.gamma", "exclusiveMinimum"): POSITIVE,
    ("train.clip_grad_norm", "minimum"): NOT_NEGATIVE
    + "; zero, which the facts' condition leaves out, turns clipping off",
    ("model.mask_former.hidden_dim", "multipleOf"): MULTIPLE,
    ("model.backbone.swin.mlp_ratio", "exclusiveMinimum"): AT_LEAST_ONE,
    **{
        (key, "minimum"): AT_LEAST_ONE
        for key in (
            "model.backbone.efficientvit.pretrain_img_size",
            "model.backbone.swin.embed_dim",
            "model.backbone.swin.patch_size",
            "model.backbone.swin.pretrain_img_size",
            "model.backbone.swin.window_size",
            "model.mask_former.nheads",
            "model.mask_former.train_num_points",
            "train.iters_per_epoch",
        )
    },
    **{
        (key, "minimum"): NOT_NEGATIVE
        for key in (
            "export.gpu_id",
            "model.mask_former.importance_sample_ratio",
            "model.mask_former.no_object_weight",
            "model.mask_former.oversample_ratio",
            "model.test_topk_per_image",
        )
    },
    **{
        (key, bound): SHARE
        for key in (
            "model.backbone.swin.attn_drop_rate",
            "model.backbone.swin.drop_path_rate",
            "model.backbone.swin.drop_rate",
            "model.object_mask_threshold",
            "model.overlap_threshold",
        )
        for bound in ("minimum", "maximum")
    },
}
OUR_VALUES: dict[tuple[str, str], Any] = {
    ("train.precision", "enum"): {"fp16", "fp32", "bf16"},
    ("model.backbone.type", "enum"): {"swin", "efficientvit"},
    ("model.backbone.swin.type", "enum"): {"tiny", "small", "base", "large"},
    ("model.backbone.efficientvit.name", "enum"): {"b0", "b1", "b2", "b3", "l0", "l1", "l2", "l3"},
    ("train.optim.lr", "exclusiveMinimum"): 0,
    ("train.optim.gamma", "exclusiveMinimum"): 0,
    ("train.clip_grad_norm", "minimum"): 0,
    ("model.mask_former.hidden_dim", "multipleOf"): 8,
    ("model.backbone.swin.mlp_ratio", "exclusiveMinimum"): 0,
    **{deviation: None for deviation in DEVIATIONS if deviation[1] == "automl_enabled"},
    **{deviation: 1 for deviation, why in DEVIATIONS.items() if why == AT_LEAST_ONE and deviation[1] == "minimum"},
    **{deviation: 0 for deviation, why in DEVIATIONS.items() if why == NOT_NEGATIVE},
    **{deviation: 0 if deviation[1] == "minimum" else 1 for deviation, why in DEVIATIONS.items() if why == SHARE},
}
TYPES = {"int": "integer", "float": "number", "bool": "boolean", "list": "array", "collection": "object"}
COMPARED = (
    "default", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "pattern",
    "math_cond", "popular", "automl_enabled",
)  # fmt: skip
# Standard keywords that the facts have no words for. About a list they say only that it is one.
SHAPES: dict[str, set[str]] = {
    "minItems": {
        "dataset.augmentation.train_crop_size",
        "dataset.augmentation.train_min_size",
        "dataset.pixel_mean",
        "dataset.pixel_std",
        "evaluate.gpu_ids",
        "inference.gpu_ids",
        "model.backbone.efficientvit.out_features",
        "model.backbone.swin.depths",
        "model.backbone.swin.num_heads",
        "model.backbone.swin.out_features",
        "model.sem_seg_head.deformable_transformer_encoder_in_features",
        "train.gpu_ids",
    },
    "maxItems": {
        "dataset.augmentation.train_crop_size",
        "dataset.pixel_mean",
        "dataset.pixel_std",
        "dataset.test.target_size",
        "dataset.train.target_size",
        "dataset.val.target_size",
        "model.backbone.swin.depths",
        "model.backbone.swin.num_heads",
    },
    # -1 or at least 1: the facts' minimum of -1 lets 0 through.
    "not": {"evaluate.batch_size", "export.batch_size", "gen_trt_engine.batch_size", "inference.batch_size"},
}
# Facts without a default: absent from the templates. Ours say what absence means.
WITHOUT_DEFAULT = {"model.backbone.swin.qk_scale": None, "train.iters_per_epoch": None, "quantize.backend_kwargs": {}}


def ours() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for action in ACTIONS:
        for key, leaf in leaves(action_schema(action)):
            assert found.setdefault(key, dict(leaf)) == leaf, f"{key} differs between actions"
    return found


OURS = ours()


def test_the_keys_are_the_187_of_the_facts_and_those_listed_as_added() -> None:
    assert len(FIELDS) == 187
    assert not ADDED.keys() & FIELDS.keys()
    assert OURS.keys() == FIELDS.keys() | ADDED.keys()


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_has_the_keys_that_the_facts_give_it(action: str) -> None:
    expected = {key for key, fact in FIELDS.items() if fact["actions"] == "all" or action in fact["actions"]}
    assert {key for key, _ in leaves(action_schema(action))} - ADDED.keys() == expected


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_a_field_is_as_the_facts_say_or_a_listed_deviation(key: str) -> None:
    fact, leaf = dict(FIELDS[key]), OURS[key]
    if key in WITHOUT_DEFAULT:
        assert "default" not in fact
        fact["default"] = WITHOUT_DEFAULT[key]
    kind = TYPES.get(fact["type"], "string")
    nullable = fact["default"] is None
    assert leaf["type"] == ([kind, "null"] if nullable else kind)
    for name in COMPARED:
        said, facts_say = leaf.get(name), fact.get(name)
        if name == "enum":
            said, facts_say = (None if choices is None else set(choices) for choices in (said, facts_say))
        if (key, name) in DEVIATIONS:
            assert said == OUR_VALUES[key, name], f"{key} {name}"
            assert said != facts_say, f"{key} {name} is no deviation any more"
        else:
            assert said == facts_say, f"{key} {name}"


@pytest.mark.parametrize("keyword", sorted(SHAPES))
def test_lists_and_counts_have_the_shapes_that_are_listed(keyword: str) -> None:
    assert {key for key, leaf in OURS.items() if keyword in leaf} == SHAPES[keyword]


def test_every_list_says_what_it_holds() -> None:
    assert all("items" in leaf for leaf in OURS.values() if leaf["type"] == "array")


def test_the_deviations_name_keys_that_exist() -> None:
    assert {key for key, _ in DEVIATIONS} <= FIELDS.keys()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_template_is_the_published_one_and_the_added_keys(action: str) -> None:
    ours = {key: value for key, value in dotted.flatten(template(action)).items() if key not in ADDED}
    assert dotted.unflatten(ours) == yaml.safe_load((FACTS / "templates" / f"spec_template_{action}.yaml").read_text())


def test_the_search_lists_are_the_published_ones_but_for_the_listed_flags() -> None:
    schema = action_schema("train")
    moved = {key for key, name in DEVIATIONS if name == "automl_enabled"}
    assert set(schema["automl_default_parameters"]) == set(SPEC["automl_default_parameters"]) - moved
    disabled = {key for action in ACTIONS for key in action_schema(action)["automl_disabled_parameters"]}
    # Besides the flags: what the annotations decide is never searched.
    classes = {"dataset.contiguous_id", "model.sem_seg_head.num_classes"}
    assert disabled == set(SPEC["automl_disabled_parameters"]) | moved | classes


def test_the_popular_parameters_are_the_published_ones() -> None:
    popular: dict[str, Any] = {}
    for action in ACTIONS:
        popular.update(dotted.flatten(action_schema(action)["popular"]))
    assert popular == dotted.flatten(SPEC["popular"])


def test_the_identity_of_a_schema_is_the_published_one_but_for_its_source() -> None:
    for action in ACTIONS:
        identity = action_schema(action)["x_tao_schema"]
        expected = {**SPEC["x_tao_schema"], "action": action, "schema_action": action}
        assert {**identity, "source": None} == {**expected, "source": None}
    # The facts require `quantize` at the top; here every block may be left out, because defaults fill it.
    assert "required" not in action_schema("train")


@pytest.mark.parametrize("name", ["gen_trt_engine", "evaluate", "inference"])
def test_a_deploy_template_is_the_published_one_but_for_the_spelling_of_the_data_type(name: str) -> None:
    from mask2former_mcp.spec.deploy import TEMPLATES

    expected = dotted.flatten(yaml.safe_load((FACTS / "templates" / f"spec_template_deploy_{name}.yaml").read_text()))
    if name == "gen_trt_engine":
        assert expected["gen_trt_engine.tensorrt.data_type"] == "fp16"
        expected["gen_trt_engine.tensorrt.data_type"] = "FP16"
    assert dotted.flatten(TEMPLATES[name]) == expected


def _rows(info: dict[str, Any], action: str) -> dict[str, Any]:
    """Rows without our own keys, and without the rows that only ADE reads."""
    return {
        key: {name: value for name, value in row.items() if name not in ("formats", "exclusive")}
        for key, row in info["data_sources"].get(action, {}).items()
        if not row.get("exclusive")
    }


@pytest.mark.parametrize(
    ("info", "facts_file"),
    [
        (skill_info(), "mask2former-skill-info.yaml"),
        (deploy_skill_info(), "mask2former-deploy-skill-info.yaml"),
    ],
)
def test_skill_info_holds_everything_that_the_published_one_holds(info: dict[str, Any], facts_file: str) -> None:
    facts = yaml.safe_load((FACTS / facts_file).read_text())
    assert info["network_arch"] == facts["network_arch"]
    assert info.get("automl_enabled") == facts.get("automl_enabled")
    assert info["spec_shorthand_keys"] == facts["spec_shorthand_keys"]
    for action, described in facts["actions"].items():
        ours = info["actions"][action]
        assert ours["command"] == described["command"]
        assert described["inputs"].items() <= ours["inputs"].items()
        assert ours["outputs"] == described["outputs"]
        assert facts["spec_params"][action].items() <= info["spec_params"][action].items()
    for action, rows in facts["data_sources"].items():
        # A plain string for the label map there; the skill's own table says it by format.
        expected = {
            key: {**row, "path": {"coco_panoptic": row["path"], "*": "label_map.json"}}
            if key == "dataset.label_map"
            else row
            for key, row in rows.items()
        }
        assert _rows(info, action) == expected


def test_the_inference_mappings_of_the_published_skill_are_complete() -> None:
    params = skill_info()["spec_params"]
    assert params["evaluate"]["evaluate.trt_engine"] == params["inference"]["inference.trt_engine"] == "parent_model"
    assert params["gen_trt_engine"]["gen_trt_engine.trt_engine"] == "create_engine_file"
    assert set(params["train"]["model.backbone.pretrained_weights"]) == {"link", "destination_path"}
    assert all(of_action["encryption_key"] == "key" for of_action in params.values())
