"""benchmarks/scaling, as far as it goes in a second: its images, and specs that the engine takes."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mask2former_mcp.formats import panoptic
from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import Experiment

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "scaling" / "scaling.py"


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_small_case_writes_both_splits(scaling: ModuleType, tmp_path: Path) -> None:
    scaling.write_images(tmp_path, small=True)
    counted = {split: len(list((tmp_path / split / "images").iterdir())) for split in ("train", "val")}
    assert counted == {"train": 16, "val": 5}
    val = tmp_path / "val"
    assert len(panoptic.read(val / "panoptic.json", val / "images", val / "panoptic").records) == 5


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("network", ["tiny", "large"])
def test_its_specs_are_valid_and_of_the_network_that_was_asked(
    scaling: ModuleType, tmp_path: Path, network: str, small: bool
) -> None:
    flat: dict[str, Any] = scaling.settings(tmp_path, network, 8, 160, 8, small=small)
    swin = Experiment.model_validate(dotted.unflatten(flat)).model.backbone.swin
    assert (swin.type, swin.embed_dim) == (("tiny", 32) if small else (network, 96))
