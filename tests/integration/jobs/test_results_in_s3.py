"""Results of a job go to S3 while it runs: what happened to it can be read there, however it ended."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.jobs.job import JobState
from mask2former_mcp.platforms.locks import is_held

pytestmark = pytest.mark.timeout(90)
PREFIX = "s3://out/runs/one"
SECRET = "planted-key-4711"


@pytest.fixture
def out(store: Any) -> Path:
    """The results bucket, as the server keeps it."""
    folder: Path = store.folder / "out"
    folder.mkdir()
    return folder / "runs" / "one"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def ending(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "job" / "job.json").read_text())
    return found


def test_checkpoints_status_and_log_arrive_while_it_runs_and_after_a_killed_supervisor(
    out: Path, cutting: Any, bench: Any
) -> None:
    jobs = bench.jobs(upload_every_s=0.2)
    job = bench.hang(jobs, epochs=4, results_dir=PREFIX)
    first = {"train/model_epoch_000_step_00009.pth", "train/status.json", "job/log.txt", "job/job.json"}
    bench.until(lambda: first <= names(out), "the first results in S3")
    assert jobs.store.get(job.id).state is JobState.RUNNING
    checkpoint = bench.folder(jobs, job) / "model_epoch_000_step_00009.pth"
    content = checkpoint.read_bytes()
    sent_before = [line for line in cutting.asked if line.startswith("PUT") and "epoch_000" in line]
    checkpoint.unlink()  # as retention does
    bench.kill(bench.supervisor(jobs, job))
    # Its lock is free when the last of its threads is gone, which comes a moment after it counts as dead.
    bench.until(lambda: not is_held(bench.job_dir(job) / "supervisor.lock"), "its lock to be free")
    jobs = bench.jobs(upload_every_s=0.2)  # reconciles
    (bench.folder(jobs, job) / "late.csv").write_text("epoch,loss\n")
    bench.until(lambda: "train/late.csv" in names(out), "the new supervisor to go on")
    jobs.cancel(job.id)
    ended = bench.finish(jobs, job)
    assert ended.state is JobState.CANCELLED
    assert ending(out)["state"] == "cancelled"
    assert (out / "train" / "model_epoch_000_step_00009.pth").read_bytes() == content
    for path in (p for p in bench.folder(jobs, job).rglob("*") if p.is_file()):
        assert (out / "train" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not [line for line in cutting.asked if line.startswith("DELETE")]
    puts = [line for line in cutting.asked if line.startswith("PUT") and "epoch_000" in line]
    assert puts == sent_before, "what has arrived is not sent again"


def test_the_record_says_how_the_job_stands_while_it_runs(out: Path, bench: Any) -> None:
    jobs = bench.jobs(upload_every_s=0.2)
    job = bench.hang(jobs, epochs=4, results_dir=PREFIX)

    def follows() -> bool:
        if not (out / "job" / "job.json").exists():  # the first one has not been sent yet
            return False
        record, metrics = ending(out), jobs.store.get(job.id).metrics
        return bool(metrics) and (record["state"], record["metrics"]) == ("running", metrics)

    bench.until(follows, "the record to follow the job")
    jobs.cancel(job.id)
    assert bench.finish(jobs, job).state is JobState.CANCELLED


def test_the_record_of_a_job_that_was_given_up_says_so(out: Path, bench: Any, tmp_path: Path) -> None:
    jobs = bench.jobs()
    job = bench.hang(jobs, epochs=4, results_dir=PREFIX)
    bench.until((out / "job" / "job.json").exists, "the first record")
    bench.kill(bench.supervisor(jobs, job), *bench.starts(jobs, job))
    bench.job_dir(job).rename(tmp_path / "elsewhere")
    ended = bench.finish(jobs, job)
    assert ended.state is JobState.LOST
    bench.until(lambda: ending(out)["state"] == "lost", "the record to be written")
    assert "is gone" in ending(out)["message"]


def test_credentials_of_a_profile_are_found_by_the_supervisor(
    out: Path, store: Any, bench: Any, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        f"[profile plant]\nregion = us-east-1\nendpoint_url = {store.endpoint}\n"
        f"aws_access_key_id = {os.environ['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {os.environ['AWS_SECRET_ACCESS_KEY']}\n"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        del bench.environ[name]
    jobs = bench.jobs({"AWS_PROFILE": "plant", "AWS_CONFIG_FILE": str(tmp_path / "config")})
    ended = bench.finish(jobs, jobs.submit(bench.plan(epochs=1, results_dir=PREFIX)))
    assert ended.state is JobState.SUCCEEDED, ended.message
    assert ending(out)["state"] == "succeeded"


def test_a_store_that_is_away_for_a_moment_costs_an_attempt_and_not_the_job(scripted: Any, bench: Any) -> None:
    empty = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    busy = iter([(503, {}, b"<Error><Code>SlowDown</Code><Message>no</Message></Error>")] * 5)  # as often as boto asks
    scripted(lambda method, _: next(busy, (200, {"ETag": '"0"'}, empty if method == "GET" else b"")))
    jobs = bench.jobs({name: value for name, value in os.environ.items() if name.startswith("AWS_")})
    ended = bench.finish(jobs, jobs.submit(bench.plan(epochs=1, results_dir=PREFIX)))
    assert (ended.state, ended.attempt, ended.restarts) == (JobState.SUCCEEDED, 2, 1)


def test_a_failed_job_leaves_its_evidence_there(out: Path, bench: Any) -> None:
    jobs = bench.jobs()
    traceback = "RuntimeError: the lathe is on fire"
    job = jobs.submit(bench.plan(epochs=1, results_dir=PREFIX, fake={"exit": 3, "no_done": True, "stderr": traceback}))
    ended = bench.finish(jobs, job)
    assert ended.state is JobState.FAILED
    told = ending(out)
    assert (told["state"], told["job_id"], told["error_code"]) == ("failed", job.id, ended.error_code)
    assert traceback in (out / "job" / "log.txt").read_text()
    assert "train/status.json" in names(out)
    assert json.loads((out / "job" / "plan.json").read_text())["digest"] == "d" * 64


def test_the_encryption_key_and_the_stores_own_credentials_are_never_uploaded(out: Path, bench: Any) -> None:
    jobs = bench.jobs({"M2F_ENCRYPTION_KEY": SECRET})
    fake = {"print_spec": True, "failure": "the key is $KEY", "exit": 1, "no_done": True}
    job = jobs.submit(bench.plan(epochs=1, results_dir=PREFIX, key_from_environment=True, fake=fake))
    bench.finish(jobs, job)
    assert SECRET in (bench.job_dir(job) / "spec.yaml").read_text()
    assert SECRET in (bench.folder(jobs, job) / "status.json").read_text()
    assert "the key is ***" in (out / "train" / "status.json").read_text()
    assert "job/spec.yaml" not in names(out)
    uploaded = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    here = b"".join(p.read_bytes() for p in bench.settings.home.rglob("*") if p.is_file())
    assert SECRET.encode() not in uploaded
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in uploaded + here


def test_the_key_of_an_earlier_attempt_is_not_uploaded_by_a_later_one(out: Path, bench: Any) -> None:
    """All attempts write to one status.json, which is sent whole again when it has grown."""
    fake = {"print_spec": True, "failure": "the key is $KEY", "exit": 1, "no_done": True}
    plan = bench.plan(epochs=1, results_dir=PREFIX, key_from_environment=True, fake=fake)
    job = bench.jobs({"M2F_ENCRYPTION_KEY": SECRET}).submit(plan)
    for key in ("planted-second", "planted-third"):
        jobs = bench.jobs({"M2F_ENCRYPTION_KEY": key})
        bench.finish(jobs, job)
        job = jobs.resume(job.id)
    bench.finish(jobs, job)
    status = (bench.folder(jobs, job) / "status.json").read_text()
    assert all(key in status for key in (SECRET, "planted-second", "planted-third"))
    assert (out / "train" / "status.json").read_text().count("the key is ***") == 3
    uploaded = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"planted-" not in uploaded
    kept = bench.job_dir(job) / "earlier_keys.yaml"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_prefix_with_somebody_elses_results_is_refused_before_anything_runs(out: Path, bench: Any) -> None:
    jobs = bench.jobs()
    first = jobs.submit(bench.plan(epochs=1, results_dir=PREFIX))
    assert bench.finish(jobs, first).state is JobState.SUCCEEDED
    before = {name: (out / name).read_bytes() for name in names(out)}
    second = jobs.submit(bench.plan(epochs=1, results_dir=PREFIX))
    ended = bench.finish(jobs, second)
    assert ended.state is JobState.FAILED
    assert f"{PREFIX} holds the results of {first.id}" in ended.message
    assert bench.starts(jobs, second) == []
    assert {name: (out / name).read_bytes() for name in names(out)} == before


def test_a_missing_bucket_is_named_before_anything_runs(store: Any, bench: Any) -> None:
    jobs = bench.jobs()
    job = jobs.submit(bench.plan(epochs=1, results_dir="s3://no-such-bucket/one"))
    ended = bench.finish(jobs, job)
    assert ended.state is JobState.FAILED
    assert "s3://no-such-bucket" in ended.message
    assert "the bucket does not exist" in ended.message
    assert bench.starts(jobs, job) == []


def test_a_job_whose_results_do_not_arrive_does_not_count_as_a_success(scripted: Any, bench: Any) -> None:
    empty = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    denied = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"

    def script(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if method == "GET":
            return 200, {}, empty
        return (200, {"ETag": '"0"'}, b"") if path.endswith("job.json") else (403, {}, denied)

    scripted(script)
    jobs = bench.jobs({name: value for name, value in os.environ.items() if name.startswith("AWS_")})
    ended = bench.finish(jobs, jobs.submit(bench.plan(epochs=1, results_dir=PREFIX)))
    assert (ended.state, ended.error_code) == (JobState.FAILED, "upload_failed")
    assert "s3:PutObject" in ended.message
    assert str(jobs.results_dir(ended.id)) in ended.message
    assert bench.folder(jobs, ended).is_dir()
