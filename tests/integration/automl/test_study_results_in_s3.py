"""A study whose results belong in S3: its own and those of its trials lie there side by side."""

import json
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
