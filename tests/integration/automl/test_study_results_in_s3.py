"""A study whose results belong in S3: its own and those of its trials lie there side by side."""

import json
import os
from typing import Any

import pytest

from mask2former_mcp.jobs.job import JobState

pytestmark = pytest.mark.timeout(180)


def test_a_study_and_each_of_its_trials_upload_what_they_wrote(store: Any, laboratory: Any) -> None:
    (store.folder / "out").mkdir()
    laboratory.behave(epoch_s=0.02)
    study = laboratory.start(max_trials=2, epochs=3, request={"results_dir": "s3://out/study"})
    ended = laboratory.finish(study)
    assert ended.state is JobState.SUCCEEDED, ended.message + laboratory.log(study)
    out = store.folder / "out" / "study"
    told = json.loads((out / "job" / "job.json").read_text())
    assert (told["job_id"], told["state"]) == (study.id, "succeeded")
    winner = json.loads((out / "study.json").read_text())["winner"]
    trials = laboratory.trials(study)
    assert winner["job_id"] in {job.id for job in trials.values()}
    for number, job in trials.items():
        theirs = json.loads((out / f"trial-{number}" / "job" / "job.json").read_text())
        assert theirs["job_id"] == job.id
        assert (out / f"trial-{number}" / "train" / "status.json").is_file()


def test_a_store_that_is_away_for_a_moment_costs_the_study_an_attempt_and_not_its_end(
    scripted: Any, laboratory: Any
) -> None:
    empty = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    busy = iter([(503, {}, b"<Error><Code>SlowDown</Code><Message>no</Message></Error>")] * 5)  # as often as boto asks
    scripted(lambda method, _: next(busy, (200, {"ETag": '"0"'}, empty if method == "GET" else b"")))
    laboratory.environ |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    laboratory.with_settings()
    study = laboratory.start(max_trials=1, epochs=2, request={"results_dir": "s3://out/study"})
    ended = laboratory.finish(study)
    assert (ended.state, ended.attempt, ended.restarts) == (JobState.SUCCEEDED, 2, 1), laboratory.log(study)
    assert sorted(laboratory.trials(study)) == [0]
