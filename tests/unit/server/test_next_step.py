"""What a job says of itself and of the one call that makes sense now."""

from dataclasses import replace

import pytest

from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import AutomlDecision, Estimate, Plan
from mask2former_mcp.server.job_facts import about, headline, listed, next_step

PLAN = Plan(
    action="train",
    automl=AutomlDecision(policy="off", route="direct", source="argument", reason="test"),
    spec_overrides={},
    spec={},
    command=(),
    image=None,
    platform="local",
    runtime="engine",
    estimate=Estimate(gpus=0, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="table"),
    digest="d" * 64,
    datasets={"train": {"uri": "/data/belt"}},
)
FAILED = Job(
    id="train-7f3k9q2d", action="train", state=JobState.FAILED, plan=PLAN, created_at=0.0, run_name="monday",
    parent_job_id="train-aaaa1111",
)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "first"),
    [
        ("dataset_invalid", "check_dataset(dataset='/data/belt')"),
        ("cannot_start", "doctor(platform='local')"),
        ("out_of_memory", "get_job_logs(job_id='train-7f3k9q2d')"),
        (None, "get_job_logs(job_id='train-7f3k9q2d')"),
    ],
)
def test_after_a_failure_the_first_look_goes_where_the_cause_shows(code, first):
    step = next_step(replace(FAILED, error_code=code))
    assert step.startswith(first)
    assert step.endswith("then resume_job(job_id='train-7f3k9q2d')")


def test_what_resume_does_with_a_cancelled_job_is_said_by_its_message_alone():
    assert next_step(replace(FAILED, state=JobState.CANCELLED)) == "resume_job(job_id='train-7f3k9q2d')"


def test_the_metrics_of_a_running_training_are_said_to_be_its_best():
    running = replace(
        FAILED, state=JobState.RUNNING, phase="epoch 5 of 12", progress=0.42, eta_s=180.0, metrics={"mIoU": 0.7123}
    )
    assert headline(running) == f"{FAILED.id} running 42% (epoch 5 of 12, best mIoU 0.712, 3 min left)"


def test_a_job_says_when_it_was_made_of_what_and_under_which_name():
    assert about(FAILED) == {
        "created_at": "1970-01-01T00:00:00+00:00",
        "run_name": "monday",
        "parent_job_id": "train-aaaa1111",
        "dataset": "/data/belt",
        "metric": "mIoU",
    }


@pytest.mark.parametrize("study", [None, "train-bbbb2222"])
def test_a_row_of_a_list_has_ten_fields_at_most(study):
    row = listed(replace(FAILED, study_id=study, trial=None if study is None else 0))
    assert len(row) <= 10
    assert ("study_id" in row) is (study is not None)
