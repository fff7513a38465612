"""The command line: help without torch, wrong verbs, bad specs, exit codes, status lines of a failed start."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former_mcp.engine import cli, session
from mask2former_mcp.engine.status import StatusLog

Spec = Callable[..., dict[str, Any]]


def test_help_imports_neither_torch_nor_the_spec() -> None:
    code = (
        "import sys\nfrom mask2former_mcp.engine.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "train the network" in done.stdout


def test_a_wrong_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evalute", "-e", "spec.yaml"]) == 2
    assert "Did you mean evaluate?" in capsys.readouterr().err


def test_a_missing_spec_file_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train"])
    assert end.value.code == 2
    assert "-e" in capsys.readouterr().err


def test_overrides_win_over_the_file_and_are_read_as_yaml(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("train: {num_epochs: 3, optim: {lr: 1.0e-4}}\n")
    read = session.read_spec(file, ["train.num_epochs=5", "train.freeze=[backbone]", "results_dir="])
    assert read == {"train": {"num_epochs": 5, "optim": {"lr": 1e-4}, "freeze": ["backbone"]}, "results_dir": ""}
    with pytest.raises(ValueError, match="key=value"):
        session.read_spec(file, ["train.num_epochs"])


def test_an_unknown_key_fails_with_the_nearest_in_the_status_file(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump({"results_dir": str(tmp_path), "train": {"num_epoch": 3}}))
    assert cli.main(["train", "-e", str(file)]) == 2
    told = [json.loads(line) for line in (tmp_path / "train" / "status.json").read_text().splitlines()]
    assert [x["status"] for x in told] == ["STARTED", "FAILURE"]
    assert told[1]["message"].startswith("Configuration error: ")
    assert "train.num_epochs" in told[1]["message"]


def test_a_spec_without_a_results_folder_is_refused(
    tiny: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(tiny()))
    assert cli.main(["train", "-e", str(file)]) == 2
    assert "results_dir is empty" in capsys.readouterr().err


def test_out_of_memory_is_answered_with_advice() -> None:
    message = session.explain(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"))
    assert "batch_size" in message
    assert "activation_checkpoint" in message


def test_a_torn_line_is_ended_before_the_next(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"status": "RUNN')
    StatusLog(tmp_path).running("again", {"mIoU": float("nan"), "PQ": 0.5}, epoch=1)
    text = (tmp_path / "status.json").read_text().splitlines()
    assert text[0] == '{"status": "RUNN'
    line = json.loads(text[1])
    assert line["kpi"] == {"PQ": 0.5}
    assert line["epoch"] == 1


@pytest.mark.parametrize("key", [20302030, ["hush20302030"]])
def test_a_secret_of_the_wrong_type_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: object
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump({"results_dir": str(tmp_path), "encryption_key": key}))
    assert cli.main(["train", "-e", str(file)]) == 2
    told = (tmp_path / "train" / "status.json").read_text() + capsys.readouterr().err
    assert "encryption_key" in told
    assert "20302030" not in told


def test_a_secret_of_digits_on_the_command_line_is_text(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("")
    assert session.read_spec(tmp_path / "spec.yaml", ["encryption_key=0123"]) == {"encryption_key": "0123"}


def test_a_file_that_is_no_yaml_is_named_by_line_without_its_text(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("train: {}\nencryption_key: 'hush\n")
    with pytest.raises(ValueError, match=r"spec\.yaml, line 3: not valid YAML") as error:
        session.read_spec(tmp_path / "spec.yaml", [])
    assert "hush" not in str(error.value)
