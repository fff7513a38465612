"""The bundle that comes with the package, read the way the server reads it."""

import shutil
from pathlib import Path

import pytest
import yaml

from mask2former_mcp import bundle, data_source
from mask2former_mcp.errors import BundleError, NotFound

ROOT = Path(__file__).resolve().parents[3]
ACTIONS = ("train", "evaluate", "export", "inference", "quantize", "gen_trt_engine")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for part in ("schemas", "references"):
        shutil.copytree(ROOT / part, tmp_path / part)
    return tmp_path


def test_the_packaged_bundle_describes_six_actions() -> None:
    own = bundle.load()
    assert own.name == "train-mask2former"
    assert own.network_arch == "mask2former"
    assert own.actions == ACTIONS
    assert own.automl_enabled
    assert own.metric == "mIoU"
    assert own.notes == ()
    for action in own.actions:
        assert own.schema(action)["x_tao_schema"]["action"] == action
        assert own.template(action) == own.schema(action)["default"]
        assert own.command(action) == ("mask2former", action, "-e", "{config_path}")


def test_the_deploy_twin_has_its_own_actions_templates_and_image() -> None:
    deploy = bundle.load().deploy
    assert deploy is not None
    assert deploy.actions == ("gen_trt_engine", "evaluate", "inference")
    assert deploy.template("evaluate")["model"]["mode"] == "semantic"
    assert deploy.template("gen_trt_engine")["gen_trt_engine"]["tensorrt"]["data_type"] == "FP16"
    assert deploy.spec_params("evaluate") == {"results_dir": "output_dir", "evaluate.trt_engine": "parent_model"}


def test_images_by_runtime() -> None:
    own = bundle.load()
    assert (own.image("train", "tao") or "").endswith("-pyt")
    assert (own.image("gen_trt_engine", "tao") or "").endswith("-deploy")
    assert own.image("train", "engine") is None


@pytest.mark.parametrize(
    ("dataset_format", "read"),
    [
        ("coco_panoptic", {"img_dir", "panoptic_json", "panoptic_dir"}),
        ("coco", {"img_dir", "instance_json"}),
        ("ade", {"root_dir", "annot_file"}),
    ],
)
def test_training_reads_what_the_format_needs(dataset_format: str, read: set[str]) -> None:
    rows = [row for row in bundle.load().data_sources("train") if row.is_read(dataset_format)]
    for split in ("train", "val"):
        assert {row.key.rsplit(".", 1)[1] for row in rows if row.key.startswith(f"dataset.{split}.")} == read
    assert "dataset.label_map" in {row.key for row in rows}


def test_other_actions_read_less_and_say_so() -> None:
    own = bundle.load()
    read = {
        action: {row.key for row in own.data_sources(action) if row.is_read("coco")}
        for action in ("evaluate", "inference", "quantize")
    }
    assert read["evaluate"] == {"dataset.label_map", "dataset.val.img_dir", "dataset.val.instance_json"}
    assert read["inference"] == {"dataset.label_map", "dataset.test.img_dir"}
    assert read["quantize"] == {"dataset.label_map"}
    assert own.data_sources("export") == ()


def test_the_label_map_is_chosen_by_format() -> None:
    (row,) = [row for row in bundle.load().data_sources("train") if row.key == "dataset.label_map"]
    assert row.file_name("coco_panoptic") == "label_map_panoptic.json"
    assert row.file_name("coco") == row.file_name("ade") == "label_map.json"


@pytest.mark.parametrize(
    "rule",
    [
        "coco_panoptic: A; *: B",
        {"coco_panoptic": "A", "*": "B"},
        {"coco_panoptic": "A; *: B"},
    ],
)
def test_a_rule_by_format_is_understood_in_all_its_spellings(rule: object) -> None:
    assert data_source.format_rule(rule) == {"coco_panoptic": "A", "*": "B"}


def test_the_published_example_of_a_rule_is_repaired() -> None:
    written = {"coco_panoptic": "s3://bucket/data/train/label_map_panoptic.json; *: label_map.json"}
    assert data_source.format_rule(written) == {
        "coco_panoptic": "s3://bucket/data/train/label_map_panoptic.json",
        "*": "label_map.json",
    }


@pytest.mark.parametrize("value", ["label_map.json", "s3://bucket/label_map.json", "", None, 3])
def test_a_plain_path_is_no_rule(value: object) -> None:
    assert data_source.format_rule(value) is None


def test_an_unknown_action_is_answered_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match="no action 'prune'") as refused:
        bundle.load().schema("prune")
    assert "train, evaluate" in refused.value.fix


def test_automl_is_runnable_while_schema_and_template_parse() -> None:
    assert bundle.load().automl_runnable() is None


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("schemas/train.schema.json", None, "does not exist"),
        ("schemas/train.schema.json", "{", "Expecting"),
        ("schemas/train.schema.json", "[]", "does not hold a mapping"),
        ("schemas/train.schema.json", "{}", "no `properties`"),
        ("schemas/train.schema.json", '{"properties": {}, "x_tao_schema": {"network_arch": "dino"}}', "dino"),
        ("references/spec_template_train.yaml", None, "does not exist"),
        ("references/spec_template_train.yaml", "a: [", "expected"),
        ("references/spec_template_train.yaml", "- a", "does not hold a mapping"),
    ],
)
def test_automl_is_not_runnable_without_them_and_the_reason_names_the_file(
    copied: Path, file: str, content: str | None, cause: str
) -> None:
    path = copied / file
    path.unlink() if content is None else path.write_text(content)
    reason = bundle.load(copied).automl_runnable()
    assert reason is not None
    assert file in reason
    assert cause in reason
    assert bundle.load(copied).automl_enabled  # the metadata says the same as before


@pytest.mark.parametrize("content", [None, "a: [", "name: x", "network_arch: x\nactions: [train]"])
def test_a_folder_that_is_no_bundle_is_refused_with_the_file_named(copied: Path, content: str | None) -> None:
    path = copied / "references" / "skill_info.yaml"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(BundleError, match=r"skill_info\.yaml") as refused:
        bundle.load(copied)
    assert refused.value.fix


def test_the_digest_follows_what_decides_a_plan_and_nothing_else(copied: Path) -> None:
    before = bundle.load(copied).digest
    (copied / "references" / "notes.md").write_text("a guide")
    assert bundle.load(copied).digest == before == bundle.load().digest
    template = copied / "references" / "spec_template_train.yaml"
    template.write_text(template.read_text().replace("num_epochs: 10", "num_epochs: 11"))
    assert bundle.load(copied).digest != before


def test_a_template_path_that_leads_out_of_the_bundle_is_refused(copied: Path) -> None:
    path = copied / "references" / "skill_info.yaml"
    info = yaml.safe_load(path.read_text())
    info["spec_templates"]["train"] = "../../elsewhere.yaml"
    path.write_text(yaml.safe_dump(info))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        bundle.load(copied).template("train")


@pytest.mark.parametrize("name", ["../secrets.json", "/etc/passwd", "~/x", ""])
def test_a_data_source_that_leads_out_of_the_dataset_folder_is_left_out(copied: Path, name: str) -> None:
    path = copied / "references" / "skill_info.yaml"
    info = yaml.safe_load(path.read_text())
    info["data_sources"]["train"]["dataset.train.img_dir"]["path"] = name
    path.write_text(yaml.safe_dump(info))
    loaded = bundle.load(copied)
    assert "dataset.train.img_dir" not in {row.key for row in loaded.data_sources("train")}
    assert any("dataset.train.img_dir" in note for note in loaded.notes)
