"""Without a network: a job that needs published weights says what to do by hand, and goes on when that was done."""

from typing import Any

import pytest

from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.plan import Staging

pytestmark = pytest.mark.timeout(60)
LINK, PLACE = "https://files.example/swin.pth", "{home}/cache/ptm/swin/swin.pth"
NO_NETWORK = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}


def test_the_error_names_the_file_and_its_place_and_resume_finds_it_there(bench: Any) -> None:
    jobs = bench.jobs(NO_NETWORK)
    staged = Staging(kind="download", source=LINK, target=PLACE, keys=("model.backbone.pretrained_weights",))
    failed = bench.finish(jobs, jobs.submit(bench.plan(staging=(staged,))))
    place = bench.settings.home / "cache" / "ptm" / "swin" / "swin.pth"
    assert failed.state is JobState.FAILED
    assert LINK in failed.message
    assert f"put it at {place}" in failed.message
    assert 'pretrained_weights=""' in failed.message
    assert bench.starts(jobs, failed) == []

    place.write_bytes(b"weights")
    jobs.resume(failed.id)
    ended = bench.finish(jobs, jobs.get(failed.id))
    assert (ended.state, len(bench.starts(jobs, ended))) == (JobState.SUCCEEDED, 1)
    assert place.with_name("swin.pth.sha256").exists()
