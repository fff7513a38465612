"""What a study costs, and what a resume may change of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask2former_mcp.automl import budget, resume
from mask2former_mcp.automl.algorithms import OFFERED, algorithm
from mask2former_mcp.automl.budget import Devices, StudySettings, settle
from mask2former_mcp.automl.space import Parameter, Space
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.plan import Estimate
from mask2former_mcp.planning.request import AutomlSettings

SPACE = Space(
    parameters=tuple(
        Parameter(key=f"train.optim.{name}", kind="real", low=1e-5, high=1e-3, log=True)
        for name in ("lr", "weight_decay")
    )
)
PLAIN = Estimate(gpus=1, memory_gb=4.0, steps=900, seconds=3600.0, disk_gb=2.0, basis="measured by train-abc")


def spec(epochs: int = 20, **train: Any) -> dict[str, Any]:
    return {"train": {"num_epochs": epochs, "seed": 7, "num_gpus": 1, "num_nodes": 1, **train}}


def settled(epochs: int = 20, kind: str = "gpu", count: int = 1, **asked: Any) -> StudySettings:
    return settle(AutomlSettings(**asked), spec(epochs), Devices(kind, count, 1), SPACE, "mIoU")


@given(st.integers(1, 300), st.integers(2, 5), st.sampled_from(sorted(OFFERED)))
def test_left_alone_on_one_device_a_study_costs_at_most_three_plain_runs(epochs: int, factor: int, name: str) -> None:
    found = settled(epochs, algorithm=name, reduction_factor=factor)
    assert found.total_epochs is not None
    assert found.total_epochs <= 3 * epochs
    assert budget.expected_epochs(found) <= 3 * epochs
    assert found.max_trials >= 3
    assert found.rungs() == sorted(set(found.rungs()))
    assert all(0 < rung < epochs for rung in found.rungs())


def test_on_a_cpu_it_is_one_trial_unless_more_is_asked() -> None:
    assert settled(kind="cpu", count=8).max_trials == 1
    asked = settled(kind="cpu", count=8, max_trials=4)
    assert (asked.max_trials, asked.max_concurrent, asked.total_epochs) == (4, 1, None)


def test_as_many_trials_at_once_as_there_are_devices_and_no_more() -> None:
    assert settled(count=4).max_concurrent == 4
    assert settle(AutomlSettings(), spec(num_gpus=2), Devices("gpu", 4, 2), SPACE, "mIoU").max_concurrent == 2
    lowered = settled(kind="cpu", count=2, max_trials=6, max_concurrent=5)
    assert lowered.max_concurrent == 2
    assert "lowered from 5 to 2" in lowered.adjustments[0]


def test_intervals_are_shortened_where_they_would_miss_the_first_rung() -> None:
    both = {"train.validation_interval": 3, "train.checkpoint_interval": 3}
    assert budget.clamped_intervals({"validation_interval": 5, "checkpoint_interval": 5}, 3) == both
    assert budget.clamped_intervals({"validation_interval": 3, "checkpoint_interval": 1}, 3) == {}
    # What fits stays as it is; only what is measured and would not be kept follows.
    one_key = {"train.validation_interval": 3}
    assert budget.clamped_intervals({"validation_interval": 5, "checkpoint_interval": 1}, 3) == one_key
    assert budget.clamped_intervals({"validation_interval": 1, "checkpoint_interval": 9}, 3) == {
        "train.checkpoint_interval": 1
    }
    in_steps = {"validation_interval": 5, "checkpoint_interval": 500, "checkpoint_interval_unit": "step"}
    assert budget.clamped_intervals(in_steps, 3) == one_key
    found = settle(AutomlSettings(), spec(validation_interval=10), Devices("gpu", 1, 1), SPACE, "mIoU")
    assert "every 3 epoch" in found.adjustments[0]


def test_the_plan_says_what_it_will_cost_before_anything_starts() -> None:
    found = settled(9)
    words = budget.cost_words(PLAIN, found)
    assert "at most 8 trials (bayesian, 1 at once) of 9 epochs" in words
    assert "never more than 27 (a plain run: 9)" in words
    assert "2.8 h estimated from: measured by train-abc" in words
    assert "train.optim.lr in 1e-05 .. 0.001 (log)" in words
    assert budget.estimate(PLAIN, found).seconds == pytest.approx(3600 * budget.expected_epochs(found) / 9)


def test_a_time_budget_bounds_the_estimate() -> None:
    assert budget.estimate(PLAIN, settled(time_budget_minutes=30)).seconds == 1800


def test_batches_that_would_make_no_step_are_lowered_and_recorded() -> None:
    cap = budget.batch_cap(12, {"num_gpus": 2, "num_nodes": 1})
    values, notes = budget.capped_batch({"dataset.train.batch_size": 8, "train.optim.lr": 0.1}, cap)
    assert values == {"dataset.train.batch_size": 6, "train.optim.lr": 0.1}
    assert "lowered from 8 to 6" in notes[0]
    assert budget.batch_cap(None, {}) == {}


def test_the_seed_is_the_training_seed_unless_another_is_asked() -> None:
    assert settled().seed == 7
    assert settled(seed=0).seed == 0


def test_a_resume_takes_a_bigger_budget_and_nothing_that_makes_trials_incomparable() -> None:
    def resumed(asked: AutomlSettings | None, *, finished: bool = True) -> dict[str, Any]:
        return resume.resumed(settled(9), asked, spec(9)["train"], Devices("gpu", 1, 1), finished=finished)

    assert resumed(AutomlSettings(max_trials=12)) == {"max_trials": 12, "total_epochs": None}
    with pytest.raises(InvalidRequest, match=r"automl\.max_epochs cannot change"):
        resumed(AutomlSettings(max_epochs=3))
    with pytest.raises(InvalidRequest, match="already has 8"):
        resumed(AutomlSettings(max_trials=4))
    with pytest.raises(InvalidRequest, match="used its budget"):
        resumed(None)
    assert resumed(None, finished=False) == {}


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_an_algorithm_that_stops_nobody_has_no_rungs(name: str) -> None:
    has_rungs = bool(settled(27, algorithm=name).rungs())
    assert has_rungs == (algorithm(name).pruner != "none")
