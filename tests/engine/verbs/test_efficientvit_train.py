"""A tiny run with an EfficientViT backbone, and its checkpoint in use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mask2former_mcp.engine import session


def test_it_trains_saves_and_is_evaluated(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    spec = tiny(model__backbone__type="efficientvit", model__backbone__efficientvit__name="b0", train__num_epochs=1)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    assert session.run("train", tmp_path / "spec.yaml", [f"results_dir={tmp_path}"]) == 0
    latest = tmp_path / "train" / "mask2former_model_latest.pth"
    overrides = [f"results_dir={tmp_path}", f"evaluate.checkpoint={latest}"]
    assert session.run("evaluate", tmp_path / "spec.yaml", overrides) == 0
    assert (tmp_path / "evaluate" / "metrics.json").exists()
