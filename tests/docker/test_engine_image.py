"""What scripts/build-image puts into the engine's image, and who runs it."""

import json
import os
import tomllib
from pathlib import Path

import pytest

import docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(60)]
IMAGE = os.environ.get("M2F_TEST_ENGINE_IMAGE", "mask2former-engine:latest")
LIST = """
import json, os
code = "/opt/mask2former/code"
print(json.dumps([os.getuid(), os.listdir(code), sorted(os.listdir(code + "/mask2former_mcp"))]))
"""


def test_it_runs_as_nobody_says_what_it_is_and_has_an_entry_point() -> None:
    found = docker.from_env().api.inspect_image(IMAGE)["Config"]  # type: ignore[no-untyped-call] # no stub
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert found["User"] == "65532:65532"
    assert found["Entrypoint"] == ["mask2former"]
    labels = found["Labels"]
    assert labels["org.opencontainers.image.title"] == "mask2former engine"
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert labels["org.opencontainers.image.revision"] not in ("", "unknown")
    assert labels["org.mask2former-mcp.variant"] == "cpu"
    assert "NVIDIA_VISIBLE_DEVICES=void" in found["Env"]


def test_of_our_code_it_holds_what_the_engine_needs_and_nothing_else() -> None:
    said = docker.from_env().containers.run(
        IMAGE, ["-c", LIST], entrypoint="python3", remove=True, network_mode="none", read_only=True
    )
    uid, roots, rooms = json.loads(said)
    assert (uid, roots) == (65532, ["mask2former_mcp"])
    assert rooms == ["__init__.py", "engine", "formats", "spec"]
