"""What the README shows works: its Python runs, its commands exist, its JSON parses, its files are there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former_mcp import cli

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def installed(tmp_path, environ) -> dict[str, str]:
    """An environment in which `mask2former-mcp` is a command, as after pip install.

    A client hands little of its environment to the servers that it starts, so the command carries what it needs.
    """
    command = tmp_path / "bin" / "mask2former-mcp"
    command.parent.mkdir()
    kept = " ".join(f"{name}={shlex.quote(environ[name])}" for name in ("PYTHONPATH", "M2F_HOME", "M2F_GPUS"))
    command.write_text(f'#!/bin/sh\nexec env {kept} {shlex.quote(sys.executable)} -m mask2former_mcp.cli "$@"\n')
    command.chmod(0o755)
    return {**environ, "PATH": f"{command.parent}{os.pathsep}{environ['PATH']}"}


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_example_runs(code, installed, belt):
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=belt.parent, env=installed, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "plain training" in run.stdout


def test_the_example_stays_short():
    assert all(len(code.strip().splitlines()) <= 14 for code in blocks("python"))


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for block in blocks("bash", text) for line in block.splitlines() if line]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_script_that_is_named_exists_and_can_be_run(document):
    named = [words[0] for words in commands((ROOT / document).read_text(encoding="utf-8")) if words]
    scripts = [name for name in named if "/" in name]
    assert scripts
    assert all(os.access(ROOT / name, os.X_OK) for name in scripts), scripts


def test_every_verb_that_is_named_is_one(capsys):
    verbs = [words[1] for words in commands(README) if words and words[0] == "mask2former-mcp"]
    assert verbs
    for verb in verbs:
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, "--help"])
        assert ended.value.code == 0
    capsys.readouterr()


def test_the_client_configurations_are_json_and_name_the_server():
    found = re.findall(r"`(\{.*?\}+)`", README) + re.findall(r"--add-mcp '(\{.*?\})'", README)
    assert len(found) >= 3
    assert all("server.py" in json.dumps(json.loads(text)) for text in found)


def test_no_command_installs_the_engine_through_uvx_without_saying_which_torch():
    shown = [text for text in re.findall(r"`(uvx [^`]+)`", README) if "[engine]" in text]
    assert shown
    assert all("--torch-backend cpu" in text for text in shown), "on Linux the bare extra brings CUDA wheels along"


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


def test_the_rooms_that_are_described_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "mask2former_mcp"
    named = re.findall(r"`([a-z_]+/(?:[a-z0-9_]+\.py)?|[a-z_]+\.py)`", text)
    assert len(named) > 12
    assert not [name for name in named if not (package / name).exists() and not (ROOT / name).exists()]
