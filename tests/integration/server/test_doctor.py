"""doctor answers when everything is broken, each finding with its fix."""

from pathlib import Path
from typing import Any

import anyio
from mcp import Client

from mask2former_mcp.server.app import build
from mask2former_mcp.server.services import Services


def call(environ: dict[str, str], tool: str, arguments: dict[str, Any]) -> Any:
    async def ask() -> Any:
        async with Client(build(Services(environ), reconcile=False)) as client:
            return await client.call_tool(tool, arguments)

    return anyio.run(ask)


def checks(result: Any) -> dict[str, dict[str, str]]:
    assert not result.is_error
    return {check["name"]: check for check in result.structured_content["checks"]}


def test_a_working_machine_is_ready(environ):
    result = call(environ, "doctor", {})
    assert result.structured_content["ready"], result.structured_content
    assert "torch" in checks(result)["engine"]["detail"]


def test_with_everything_broken_each_part_says_what_to_do(environ, tmp_path):
    home = Path(environ["M2F_HOME"])
    home.mkdir(parents=True)
    (home / "config.toml").write_text("nonsense = true")
    result = call(environ, "doctor", {})
    assert not result.structured_content["ready"]
    broken = [check for check in result.structured_content["checks"] if check["status"] == "error"]
    assert broken
    assert all(check["fix"] for check in broken)
    assert all(check["fix"] in result.content[0].text for check in broken)


def test_a_missing_engine_is_an_error_with_the_command_that_installs_it(environ, tmp_path):
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho \'{"missing": ["torch"]}\'\n')
    bare.chmod(0o755)
    engine = checks(call({**environ, "M2F_PYTHON": str(bare)}, "doctor", {}))["engine"]
    assert engine["status"] == "error"
    assert "pip install" in engine["fix"]


def test_a_bundle_that_is_not_there_is_named(environ, tmp_path):
    found = checks(call({**environ, "M2F_SKILL_DIR": str(tmp_path / "nothing here")}, "doctor", {}))
    assert found["skill bundle"]["status"] == "error"
    assert "nothing here" in found["skill bundle"]["detail"]
    assert found["job store"]["status"] == "ok"


def test_one_broken_thing_is_told_once_and_the_others_point_at_it(environ):
    home = Path(environ["M2F_HOME"])
    home.mkdir(parents=True)
    (home / "config.toml").write_bytes(b"\xff\xfe")
    result = call(environ, "doctor", {})
    assert sum("config.toml cannot be read" in check["detail"] for check in checks(result).values()) == 1
    assert checks(result)["engine"]["detail"] == "cannot be looked at: see settings"


def test_a_home_that_cannot_be_made_and_a_python_that_is_none_say_what_to_set(environ):
    found = checks(call({**environ, "M2F_HOME": "/proc/nowhere/home", "M2F_PYTHON": "/bin/true"}, "doctor", {}))
    assert "M2F_HOME" in found["home"]["fix"]
    assert "M2F_PYTHON" in found["engine"]["fix"]


def test_an_engine_command_of_the_operator_is_looked_for_and_not_into(environ):
    there = checks(call({**environ, "M2F_ENGINE_COMMAND": "sh engine.sh"}, "doctor", {}))["engine"]
    assert there["status"] == "ok"
    gone = checks(call({**environ, "M2F_ENGINE_COMMAND": "/nowhere/engine"}, "doctor", {}))["engine"]
    assert "M2F_ENGINE_COMMAND" in gone["fix"]


def test_without_the_engine_train_plans_and_its_start_says_how_to_install_it(environ, tiny_training, tmp_path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho '[\"torch\"]'\n")
    bare.chmod(0o755)
    without = {**environ, "M2F_PYTHON": str(bare)}
    assert not call(without, "train", {**tiny_training, "dry_run": True}).is_error
    refused = call(without, "train", tiny_training).structured_content
    assert (refused["code"], refused["started"]) == ("not_available", False)
    assert "torch" in refused["message"]
    assert "[engine]" in refused["fix"]
    assert call(without, "list_jobs", {}).structured_content["jobs"] == []
