"""Jobs beside each other while their data is staged: they wait visibly, can be stopped, and keep what they read."""

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.staging import archives, mirror
from mask2former_mcp.staging.locks import locked
from mask2former_mcp.staging.uri import Uri

pytestmark = pytest.mark.timeout(90)


def test_a_job_that_waits_for_anothers_extraction_says_so_and_can_be_cancelled(
    bench: Any, jobs: Jobs, tmp_path: Path
) -> None:
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(__file__, "a.jpg")
    place = archives.cache_place(archive)
    item = {"kind": "extract", "source": str(archive), "target": f"{{home}}/{place}", "keys": (), "options": {}}
    target = bench.settings.home / place
    target.parent.mkdir(parents=True)
    with locked(target.with_name(f".{target.name}.lock")):
        job = jobs.submit(bench.plan(staging=[item]))
        words = "waiting for another job that is extracting images.tar.gz"
        bench.until(lambda: jobs.store.get(job.id).phase == words, "the job to say for what it waits")
        jobs.cancel(job.id)
        assert bench.finish(jobs, job).state is JobState.CANCELLED
    assert bench.starts(jobs, job) == []


def test_what_a_running_job_reads_stays_in_the_cache_until_it_has_ended(store: Any, bench: Any) -> None:
    home = bench.settings.home
    jobs = bench.jobs(s3_cache_gb=1e-6, cpu_slots=2)
    for name in ("one", "two", "three"):
        (store.folder / "data" / name).mkdir(parents=True)
        (store.folder / "data" / name / "a.jpg").write_bytes(os.urandom(100_000))

    def fetching(name: str) -> tuple[dict[str, Any], Path]:
        place = mirror.outline(Uri("data", name), home)
        options = {"parts": ("",), "state": place.name}
        return {"kind": "fetch", "source": f"s3://data/{name}", "target": f"{{home}}/{place.relative_to(home)}",
                "keys": (), "options": options}, place  # fmt: skip

    item, place = fetching("one")
    first = bench.hang(jobs, staging=[item])
    os.utime(place, (0, 0))
    assert bench.finish(jobs, _submitted(bench, jobs, fetching("two")[0])).state is JobState.SUCCEEDED
    assert (place / "a.jpg").stat().st_size == 100_000
    jobs.cancel(first.id)
    bench.finish(jobs, first)
    assert bench.finish(jobs, _submitted(bench, jobs, fetching("three")[0])).state is JobState.SUCCEEDED
    assert not place.exists()


def _submitted(bench: Any, jobs: Jobs, item: dict[str, Any]) -> Any:
    return jobs.submit(bench.plan(epochs=1, staging=[item]))
