"""The demo's own behaviour when it cannot go on. That it goes on is shown by the chain, and by running it."""

import anyio
import pytest
from rich.console import Console

from mask2former_mcp.demo.walk import DemoFailed, Walk, walk


def test_a_demo_on_a_machine_without_the_engine_stops_at_doctor_and_says_so(environ, tmp_path, processes):
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho \'{"missing": ["torch"]}\'\n')
    bare.chmod(0o755)
    console = Console(record=True, width=120)
    small = Walk(folder=tmp_path / "belt", train_images=4, val_images=2, test_images=1, size=64)
    with pytest.raises(DemoFailed, match="doctor"):
        anyio.run(walk, small, console, {**environ, "M2F_PYTHON": str(bare)})
    assert "pip install" in console.export_text()
