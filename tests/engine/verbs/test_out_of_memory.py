"""Training that needs more memory than there is: told with what would have fitted, measured."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mask2former_mcp.engine import memory, train
from mask2former_mcp.engine.run import prepare
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]
LIMITED = """
import resource, sys
from pathlib import Path
import psutil
from mask2former_mcp.engine import session, train
limit = psutil.Process().memory_info().vms + int(sys.argv[3]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(session.run("train", Path(sys.argv[1]), ["results_dir=" + sys.argv[2]]))
"""


def run_with(megabytes: int, folder: Path, spec: dict[str, Any]) -> tuple[int, str]:
    """Exit code and last message of a training that may take so much memory beyond what its imports took."""
    folder.mkdir()
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-c", LIMITED, str(folder / "spec.yaml"), str(folder), str(megabytes)]
    code = subprocess.run(command, timeout=120, check=False, capture_output=True).returncode
    return code, json.loads((folder / "train" / "status.json").read_text().splitlines()[-1])["message"]


def test_a_batch_too_large_is_answered_with_one_that_trains(tiny: Spec, tmp_path: Path) -> None:
    changes = {"dataset.augmentation.train_crop_size": [256, 256], "dataset.augmentation.train_min_size": [256]}
    large = tiny(train__is_dry_run=True, dataset__train__batch_size=8, **changes)
    code, message = run_with(500, tmp_path / "large", large)
    assert code == 1
    assert message.startswith("Out of memory: ")
    assert "train_crop_size" in message
    measured = re.search(
        r"256 x 256 takes 0\.\d+ GiB, 0\.\d+ GiB are free: dataset\.train\.batch_size=(\d) would fit", message
    )
    assert measured, message
    fitting = int(measured[1])
    assert 1 <= fitting < 8


@pytest.mark.parametrize(
    ("free", "told"),
    [
        (3.5, "batch_size=3 would fit, and with train.accumulate_grad_batches=3"),
        (0.5, "one image hardly fits"),
    ],
)
def test_the_estimate_follows_what_one_image_took(
    tiny: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, told: str
) -> None:
    work = prepare(load("train", tiny(dataset__train__batch_size=8)), tmp_path)
    batch = next(iter(train._training_batches(work)))
    before = {name: value.clone() for name, value in work.model.state_dict().items()}
    each, _ = memory._measured(work, memory._first(batch))
    assert each > batch.images[0].numel()
    parameters = sum(p.numel() * 4 for p in work.model.parameters())
    monkeypatch.setattr(memory, "_free", lambda: int(free * each) + 3 * parameters)
    assert told in memory.what_fits(work, batch)
    assert all(p.grad is None for p in work.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in work.model.state_dict().items())


def test_other_errors_of_a_step_pass_as_they_are(tiny: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = prepare(load("train", tiny()), tmp_path)
    (batch,) = next(train._shares(work))
    batch.valid = batch.valid[:, :-1]
    with pytest.raises(ValueError, match="stride 4"):
        train.step(work, None, (batch,))
