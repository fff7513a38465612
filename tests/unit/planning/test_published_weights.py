"""When a plan fetches the backbone weights that the bundle names, and when it must not."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former_mcp import bundle
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import REQUESTS
from mask2former_mcp.settings import Settings

KEY = "model.backbone.pretrained_weights"
NAME = "swin_tiny_patch4_window7_224_22k.pth"
LINK = f"https://github.com/SwinTransformer/storage/releases/download/v1.0.8/{NAME}"
PLACE = f"{{home}}/cache/ptm/mask2former/swin_tiny_patch4_window7_224_22k/{NAME}"


def weights(made: Any) -> str:
    return str(made.spec["model"]["backbone"]["pretrained_weights"])


def notes(made: Any) -> str:
    return "\n".join(made.warnings)


@pytest.mark.parametrize("arguments", [{}, {"backbone": "swin_tiny"}, {"num_epochs": 3}])
def test_a_plain_swin_tiny_fetches_its_published_weights(
    plan: Any, data: Path, home: Path, arguments: dict[str, Any]
) -> None:
    made = plan("train", train_dataset=str(data / "shop"), **arguments)
    assert weights(made) == PLACE
    assert made.spec_overrides[KEY] == PLACE
    (item,) = (item for item in made.staging if item.kind == "download")
    assert (item.source, item.target, item.keys) == (LINK, PLACE, (KEY,))
    assert "downloaded once from github.com" in notes(made)
    assert str(home) in notes(made)  # where to put the file by hand
    assert "from scratch: " not in notes(made)
    assert not (home / "cache" / "ptm").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained_weights": ""},
        {"overrides": {KEY: ""}},
        {"preset": "mini"},
        {"backbone": "swin_small"},
        {"backbone": "swin_base"},
        {"backbone": "efficientvit_b0"},
        {"overrides": {"model.backbone.swin.embed_dim": 48}},
        {"overrides": {"model.backbone.swin.depths": [2, 2, 2, 2]}},
        {"overrides": {"model.backbone.swin.window_size": 12}},
    ],
)
def test_any_other_network_and_an_empty_name_start_from_scratch(
    plan: Any, data: Path, arguments: dict[str, Any]
) -> None:
    made = plan("train", train_dataset=str(data / "shop"), **arguments)
    assert weights(made) == ""
    assert not [item for item in made.staging if item.kind == "download"]
    assert notes(made).count("from scratch: ") == 1


def test_a_named_file_is_used_and_nothing_fetched(plan: Any, data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "swin_tiny_patch4_window7_224.pth"
    mine.write_bytes(b"weights")
    made = plan("train", train_dataset=str(data / "shop"), pretrained_weights=str(mine))
    assert weights(made) == str(mine)
    assert not [item for item in made.staging if item.kind == "download"]


def test_a_whole_network_to_start_from_leaves_the_backbones_weights_out(
    plan: Any, data: Path, trained: Any, tmp_path: Path
) -> None:
    from_parent = plan("train", train_dataset=str(data / "shop"), parent_job_id=trained.job_id)
    whole = tmp_path / "model_epoch_000_step_00001.pth"
    whole.write_bytes(b"weights")
    from_file = plan("train", train_dataset=str(data / "shop"), checkpoint=str(whole))
    for made in (from_parent, from_file):
        assert weights(made) == ""
        assert not [item for item in made.staging if item.kind == "download"]


@pytest.mark.parametrize("action", ["evaluate", "export", "inference"])
def test_only_training_fetches(plan: Any, data: Path, trained: Any, action: str) -> None:
    made = plan(action, parent_job_id=trained.job_id)
    assert not [item for item in made.staging if item.kind == "download"]


def test_the_digest_is_the_same_with_and_without_the_file_in_the_cache(plan: Any, data: Path, home: Path) -> None:
    before = plan("train", train_dataset=str(data / "shop"))
    there = home / PLACE.removeprefix("{home}/")
    there.parent.mkdir(parents=True)
    there.write_bytes(b"weights")
    after = plan("train", train_dataset=str(data / "shop"))
    scratch = plan("train", train_dataset=str(data / "shop"), pretrained_weights="")
    assert before.digest == after.digest != scratch.digest
    assert "they are in the cache" in notes(after)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"destination_path": "/ptm/../../../root/.ssh/authorized_keys"}, "without .."),
        ({"destination_path": "weights.pth"}, "absolute path"),
        ({"destination_path": "/"}, "absolute path"),
        ({"link": "http://github.com/weights.pth"}, "https only"),
        ({"link": "https://169.254.169.254/latest/meta-data"}, "not a public address"),
        ({"link": "file:///etc/passwd"}, "https only"),
    ],
)
def test_a_bundle_that_names_another_place_or_address_is_refused(
    tmp_path: Path, home: Path, shelf: Any, data: Path, change: dict[str, str], words: str
) -> None:
    skill = tmp_path / "skill"
    for part in ("schemas", "references"):
        shutil.copytree(bundle.load().directory / part, skill / part)
    info = skill / "references" / "skill_info.yaml"
    content = yaml.safe_load(info.read_text())
    content["spec_params"]["train"][KEY] |= change
    info.write_text(yaml.safe_dump(content))
    planner = Planner(bundle.load(skill), Settings(home=home), shelf, None, {})
    with pytest.raises(InvalidRequest, match=words):
        planner.plan(REQUESTS["train"].model_validate({"dry_run": True, "train_dataset": str(data / "shop")}))
    assert not home.exists() or not list(home.rglob("authorized_keys"))
