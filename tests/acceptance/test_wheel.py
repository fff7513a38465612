"""The wheel is whole: installed into an empty environment, without torch, it serves and plans."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAN = """
import asyncio, importlib.util, json, sys
from mcp import Client
from mcp.client.stdio import StdioServerParameters

async def main():
    server = StdioServerParameters(command=sys.argv[1], env={"M2F_HOME": sys.argv[3], "M2F_GPUS": "none"})
    async with Client(server) as client:
        plan = await client.call_tool("train", {"train_dataset": sys.argv[2], "preset": "mini", "dry_run": True})
        doctor = await client.call_tool("doctor", {})
        schema = await client.read_resource("m2f://schemas/train")
        skill = await client.read_resource("m2f://skill")
    print(json.dumps({
        "error": plan.is_error, "plan": plan.structured_content, "ready": doctor.structured_content["ready"],
        "torch": importlib.util.find_spec("torch") is not None,
        "schema": len(schema.contents[0].text), "skill": len(skill.contents[0].text),
    }))

asyncio.run(main())
"""


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], cwd="/", capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_plans_in_an_empty_environment(tmp_path, belt):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    script = tmp_path / "plan.py"
    script.write_text(PLAN)
    found = json.loads(run(venv / "bin" / "python", script, venv / "bin" / "mask2former-mcp", belt, tmp_path / "home"))
    assert not found["error"], found["plan"]
    assert found["plan"]["spec_overrides"]["model.sem_seg_head.num_classes"] == 9
    assert found["plan"]["automl"]["route"] == "automl", "the bundle travels in the wheel"
    assert not found["torch"]
    assert not found["ready"], "without the engine, doctor says so"
    assert found["schema"] > 1000
    assert found["skill"] > 500
