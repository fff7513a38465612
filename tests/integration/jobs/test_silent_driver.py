"""A machine with GPUs whose driver does not answer: jobs wait for it, and never fall back to the CPU."""

from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.jobs import supervisor, turn
from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.platforms.registry import platform_for

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def environ(bench: Any, tmp_path: Path) -> dict[str, str]:
    """Its nvidia-smi fails as long as the file `tries` is shorter than the file `failures`."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(
        f"""#!/bin/sh
        cd {tmp_path} && echo >> tries
        [ $(wc -l < tries) -gt $(wc -l < failures) ] || {{ echo "couldn't communicate with the driver"; exit 9; }}
        echo "0, GPU-aaaa, NVIDIA H100, 81559"
        """
    )
    tool.chmod(0o755)
    return {**bench.environ, "PATH": f"{tool.parent}:{bench.environ['PATH']}"}


def test_a_job_waits_until_the_driver_answers(bench: Any, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "failures").write_text("\n" * 10_000)
    jobs = bench.jobs(environ, gpus="auto")
    job = jobs.submit(bench.plan(epochs=1))
    waits = "waiting: the NVIDIA driver does not answer: couldn't communicate with the driver"
    bench.until(lambda: jobs.store.get(job.id).phase == waits, "it to wait")
    (tmp_path / "failures").write_text("")
    ended = bench.finish(jobs, job)
    assert ended.state is JobState.SUCCEEDED
    assert (bench.folder(jobs, job) / "starts.txt").read_text().split()[1] == "GPU-aaaa"


def test_a_driver_that_stays_silent_fails_the_job(
    bench: Any, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "_DRIVER_PATIENCE_S", 0.2)
    (tmp_path / "failures").write_text("\n" * 10_000)
    jobs = bench.jobs(environ, gpus="auto")
    job = bench.unfollowed(jobs)
    platform = platform_for("local", jobs.settings, (), environ)
    supervisor.Supervisor(jobs.settings, jobs.store, platform, environ).run(job.id)
    ended = jobs.store.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "not_available")
    assert "M2F_GPUS=none" in ended.message
    assert not bench.starts(jobs, job)
