"""scripts/venv: what it installs, when it does nothing, and why it gives up. Python and pip are played by a script."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]
TOOLS = ("bash", "cat", "cp", "dirname", "grep", "mkdir", "touch", "uname")
# Answers as a Python of 3.11 or newer does, and writes down what pip was asked for.
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-m venv") mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
  "-m pip")
    echo "$*" >>"$PLAYED/pip.log"
    case "$*" in *--dry-run*) exit "$NO_WHEEL" ;; *" install "*torch*) touch "$PLAYED/torch" ;; esac ;;
  "-c "*version_info*) exit "$TOO_OLD" ;;
  "-c "*"import torch"*) test -e "$PLAYED/torch" ;;
  "-c "*urlopen*) exit "$NO_INDEX" ;;
  "-c "*hashlib*) echo one-state-of-pyproject ;;
esac
"""


@dataclass
class Clone:
    """A checkout with a Python of its own, and a PATH that holds nothing else."""

    root: Path
    answers: dict[str, str] = field(default_factory=lambda: dict.fromkeys(("NO_WHEEL", "TOO_OLD", "NO_INDEX"), "0"))

    def ensure(self, extras: str = "engine") -> subprocess.CompletedProcess[str]:
        environ = {"PATH": str(self.root / "bin"), "PLAYED": str(self.root), **self.answers}
        program = f". scripts/venv; ensure_venv {extras}"
        return subprocess.run(["bash", "-c", program], cwd=self.root, env=environ, capture_output=True, text=True)

    def installed(self) -> list[str]:
        """What pip was asked to install, call by call."""
        log = self.root / "pip.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.partition(" install ")[2] for line in lines if " install " in line and "--dry-run" not in line]

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    made = Clone(tmp_path)
    (tmp_path / "bin").mkdir()
    shutil.copytree(REPO / "scripts", tmp_path / "scripts")
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        os.symlink(found, tmp_path / "bin" / tool)
    os.symlink("/usr/bin/env", tmp_path / "bin" / "env")
    made.program("python3.11", PYTHON)
    return made


def test_without_a_gpu_every_torch_asked_for_is_the_cpu_build(clone: Clone) -> None:
    done = clone.ensure()
    assert done.returncode == 0, done.stderr
    torch, package = clone.installed()
    assert torch.endswith("torch==2.13.0+cpu")
    assert package.endswith("-e .[engine]")


def test_the_public_index_is_asked_where_pip_knows_no_cpu_build(clone: Clone) -> None:
    clone.answers["NO_WHEEL"] = "1"
    assert clone.ensure().returncode == 0
    assert clone.installed()[0].endswith("torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu")


def test_with_no_cpu_build_anywhere_it_says_what_to_do_and_installs_nothing(clone: Clone) -> None:
    clone.answers |= {"NO_WHEEL": "1", "NO_INDEX": "1"}
    done = clone.ensure()
    assert done.returncode == 1
    assert "no GPU here, and no CPU build of torch 2.13.0" in done.stderr
    assert "Install a CPU build of torch (>= 2.11)" in done.stderr
    assert clone.installed() == []


def test_with_a_gpu_the_usual_build_is_installed(clone: Clone) -> None:
    clone.program("nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: one (UUID: GPU-1)'\n")
    assert clone.ensure().returncode == 0
    assert clone.installed()[0].endswith("torch>=2.11")


def test_a_second_run_installs_nothing_and_other_extras_are_added(clone: Clone) -> None:
    clone.ensure()
    before = clone.installed()
    assert clone.ensure().returncode == 0
    assert clone.installed() == before
    assert clone.ensure("engine,dev").returncode == 0
    assert [each for each in clone.installed() if "torch==" in each] == before[:1]
    assert clone.installed()[-1].endswith("-e .[engine,dev]")


def test_without_a_recent_python_it_says_which_is_needed(clone: Clone) -> None:
    clone.answers["TOO_OLD"] = "1"
    done = clone.ensure()
    assert done.returncode == 1
    assert "Python 3.11 or newer (with venv and ensurepip) was not found" in done.stderr
