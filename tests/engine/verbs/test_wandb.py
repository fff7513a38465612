"""Weights & Biases, played by a module in its place: told only with its key, never the encryption key, and no training
ends for it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from mask2former_mcp.engine import session

Spec = Callable[..., dict[str, Any]]


class Service(ModuleType):
    """Stands for the package and for its run; `broken` names the call that raises."""

    def __init__(self, broken: str = "") -> None:
        super().__init__("wandb")
        self.broken = broken
        self.calls: list[tuple[str, Any]] = []

    def init(self, **named: Any) -> "Service":
        return self.called("init", named)

    def log(self, values: dict[str, float], step: int) -> None:
        self.called("log", (step, values))

    def finish(self) -> None:
        self.called("finish", None)

    def called(self, name: str, told: Any) -> "Service":
        self.calls.append((name, told))
        if name == self.broken:
            raise RuntimeError("api.wandb.ai does not answer")
        return self


@pytest.fixture
def trained(tiny: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def train(service: Service, key: str = "k" * 40) -> None:
        monkeypatch.setitem(sys.modules, "wandb", service)
        monkeypatch.setenv("WANDB_API_KEY", key)
        spec = tiny(train__num_epochs=1, wandb__enable=True, wandb__project="belt", encryption_key="hush")
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        assert session.run("train", tmp_path / "spec.yaml", [f"results_dir={tmp_path}"]) == 0
        assert list((tmp_path / "train").glob("model_epoch_000_*.pth"))

    return train


def test_with_its_key_it_is_told_the_spec_and_the_curves_but_not_the_encryption_key(trained: Any) -> None:
    service = Service()
    trained(service)
    (name, told), *logged, (last, _) = service.calls
    assert (name, last, told["project"]) == ("init", "finish", "belt")
    assert told["config"]["train"]["num_epochs"] == 1
    assert "hush" not in str(service.calls)
    assert {"train/loss", "epoch/mIoU"} <= {name for _, (_, values) in logged for name in values}


def test_without_its_key_it_is_told_nothing(trained: Any) -> None:
    service = Service()
    trained(service, key="")
    assert service.calls == []


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_training_goes_on_without_it_and_says_so(trained: Any, broken: str, capsys: Any) -> None:
    service = Service(broken)
    trained(service)
    assert [name for name, _ in service.calls].count(broken) == 1
    assert capsys.readouterr().out.count("api.wandb.ai does not answer") == 1
