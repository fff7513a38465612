"""The installable skill: assembled whole, accepted by the Agent Skills reference validator, and loadable."""

import re
from pathlib import Path

import pytest
from skills_ref.validator import validate

from mask2former_mcp import bundle, skill_folder
from mask2former_mcp.errors import BundleError

ROOT = Path(__file__).resolve().parents[3]
TOOLS = (
    "doctor", "check_dataset", "search_spec", "list_jobs", "get_job", "wait_for_job", "get_job_logs", "get_job_metrics",
    "list_artifacts", "cancel_job", "delete_job", "resume_job",
    "train", "evaluate", "export", "quantize", "inference", "gen_trt_engine",
)  # fmt: skip


def test_the_assembled_skill_passes_the_reference_validator(tmp_path: Path) -> None:
    folder = skill_folder.assemble(tmp_path)
    assert folder.name == "train-mask2former"
    assert validate(folder) == []


def test_the_assembled_skill_is_the_same_bundle(tmp_path: Path) -> None:
    folder = skill_folder.assemble(tmp_path)
    assert bundle.load(folder).digest == bundle.load().digest
    assert {path.name for path in folder.iterdir()} == {"SKILL.md", "schemas", "references"}


def test_assembling_again_replaces_the_older_one(tmp_path: Path) -> None:
    folder = skill_folder.assemble(tmp_path)
    (folder / "schemas" / "old.schema.json").write_text("{}")
    skill_folder.assemble(tmp_path)
    assert not (folder / "schemas" / "old.schema.json").exists()


def test_a_folder_that_is_no_skill_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "train-mask2former" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(BundleError, match="is not an assembled skill"):
        skill_folder.assemble(tmp_path)
    assert mine.exists()


@pytest.mark.parametrize("tool", TOOLS)
def test_the_skill_names_every_tool(tool: str) -> None:
    assert f"`{tool}`" in (ROOT / "skill" / "SKILL.md").read_text()


def test_files_that_the_skill_points_to_are_in_the_folder(tmp_path: Path) -> None:
    folder = skill_folder.assemble(tmp_path)
    text = (folder / "SKILL.md").read_text()
    named = set(re.findall(r"`((?:references|schemas)/[^`]+)`", text))
    assert "references/tao-deploy-mask2former.md" in named
    for name in named:
        assert (folder / name.replace("<action>", "train")).is_file()
