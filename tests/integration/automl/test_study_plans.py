"""From a train request to the Plan of a study: what is decided, and what is said, before anything starts."""

from dataclasses import replace
from typing import Any

import pytest

from mask2former_mcp import bundle
from mask2former_mcp.automl import resume
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.planner import StudyPlanner
from mask2former_mcp.automl.settings import settings_of
from mask2former_mcp.automl.trials import trial_plan
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.plan import Plan, Staging
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import AutomlSettings, EvaluateRequest, TrainRequest
from mask2former_mcp.spec import dotted

ONE_GPU = Machine(gpus=1, gpu_memory_gb=24.0, cpus=8, memory_gb=64.0)
FOUR_GPUS = Machine(gpus=4, gpu_memory_gb=24.0, cpus=32, memory_gb=256.0)
NO_GPU = Machine(gpus=0, gpu_memory_gb=None, cpus=2, memory_gb=8.0)


def planned(laboratory: Any, machine: Machine, automl: dict[str, Any] | None = None, **request: Any) -> Plan:
    plain = Planner(bundle.load(), laboratory.settings, laboratory.jobs, machine, laboratory.environ)
    asked = {"train_dataset": str(laboratory.data), "preset": "mini", "num_epochs": 9, **request}
    asked.setdefault("overrides", {"dataset.train.batch_size": 2})
    settings = None if automl is None else AutomlSettings(**automl)
    return StudyPlanner(plain).plan(TrainRequest(**asked, automl=settings, dry_run=True))


def said(plan: Plan, text: str) -> bool:
    return any(text in warning for warning in plan.warnings)


def test_without_a_gpu_a_training_is_a_study_of_one_trial_and_says_so(laboratory: Any) -> None:
    plan = planned(laboratory, NO_GPU)
    found, plain = settings(plan), planned(laboratory, NO_GPU, automl_policy="off")
    assert (plan.automl.route, found.max_trials, found.rungs()) == ("automl", 1, [])
    assert said(plan, "a study of one trial, the resolved spec as it is: no GPU here")
    assert (plan.spec, plan.estimate) == (plain.spec, plain.estimate)
    assert member(laboratory, plan, 0, {}).spec == plain.spec
    assert said(planned(laboratory, ONE_GPU, {"max_trials": 1}), "max_trials=1")


def test_on_one_gpu_it_searches_unasked_for_at_most_three_plain_runs_and_says_what_it_costs(laboratory: Any) -> None:
    plan = planned(laboratory, ONE_GPU)
    assert plan.study is not None
    assert (plan.study["max_trials"], plan.study["max_concurrent"], plan.study["total_epochs"]) == (8, 1, 27)
    assert said(plan, "AutoML search: at most 8 trials (bayesian, 1 at once) of 9 epochs")
    assert plan.estimate.seconds is not None
    assert planned(laboratory, FOUR_GPUS).study["max_concurrent"] == 4  # type: ignore[index]


def test_the_digest_is_of_the_search_too_and_the_same_request_has_the_same_one(laboratory: Any) -> None:
    plain = planned(laboratory, ONE_GPU, automl_policy="off")
    search, again = planned(laboratory, ONE_GPU), planned(laboratory, ONE_GPU)
    other = planned(laboratory, ONE_GPU, {"seed": 5})
    assert search == again
    assert len({plain.digest, search.digest, other.digest}) == 3


def test_turned_off_it_is_the_plain_run_and_the_settings_are_said_to_be_unused(laboratory: Any) -> None:
    plan = planned(laboratory, ONE_GPU, {"max_trials": 4}, automl_policy="off")
    assert plan.study is None
    assert said(plan, "not used")


def test_max_epochs_is_the_length_of_every_trial_and_may_not_contradict_num_epochs(laboratory: Any) -> None:
    plan = planned(laboratory, ONE_GPU, {"max_epochs": 6}, num_epochs=None)
    assert plan.spec["train"]["num_epochs"] == plan.study["epochs"] == 6  # type: ignore[index]
    with pytest.raises(InvalidRequest, match=r"num_epochs=9 and automl\.max_epochs=6 disagree"):
        planned(laboratory, ONE_GPU, {"max_epochs": 6})


def test_the_metric_is_the_task_metric_or_the_one_that_is_asked(laboratory: Any) -> None:
    assert planned(laboratory, ONE_GPU).metric == "mIoU"
    assert planned(laboratory, ONE_GPU, {"metric": "PQ"}).study["metric"] == "PQ"  # type: ignore[index]
    assert planned(laboratory, NO_GPU, {"metric": "PQ"}).metric == "PQ"


@pytest.mark.parametrize(
    ("automl", "error"),
    [
        ({"algorithm": "pbt"}, "pbt"),
        ({"search_space": {"learning_rate": {"min": 0.1, "max": 3}}}, "3 is not legal"),
        ({"search_space": {"train.optim.momentum": True}}, "no effect"),
    ],
)
def test_what_cannot_be_searched_is_an_error_before_anything_starts(
    laboratory: Any, automl: dict[str, Any], error: str
) -> None:
    with pytest.raises(InvalidRequest, match=error):
        planned(laboratory, ONE_GPU, automl)


def test_a_metric_that_is_never_measured_is_refused_before_every_trial_fails_for_want_of_it(laboratory: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"automl\.metric=PQ is not measured with mode=semantic"):
        planned(laboratory, ONE_GPU, {"metric": "PQ"}, mode="semantic")
    with pytest.raises(InvalidRequest, match=r"automl\.metric=AP is not measured with mode=semantic"):
        planned(laboratory, NO_GPU, {"metric": "AP"}, mode="semantic")
    assert planned(laboratory, NO_GPU, {"metric": "AP"}, mode="instance").metric == "AP"


def test_the_clock_bounds_one_trial_too_and_the_plan_says_so(laboratory: Any) -> None:
    plan = planned(laboratory, NO_GPU, {"time_budget_minutes": 0.01})
    assert said(plan, "; stopped after 1 min")
    assert plan.estimate.seconds == pytest.approx(0.6)


def test_settings_that_one_trial_does_not_heed_are_named_and_kept_for_those_that_a_resume_adds(laboratory: Any) -> None:
    plan = planned(laboratory, NO_GPU, {"algorithm": "random", "seed": 3})
    assert said(plan, "automl.algorithm, automl.seed: without effect on one trial")
    assert (settings(plan).algorithm, settings(plan).seed) == ("random", 3)
    assert not said(planned(laboratory, NO_GPU, {"max_trials": 1}), "without effect")


def test_a_study_of_one_trial_has_rungs_and_a_width_once_a_resume_makes_it_a_search(laboratory: Any) -> None:
    overrides = {"dataset.train.batch_size": 2, "train.validation_interval": 4}
    job = ended(planned(laboratory, FOUR_GPUS, {"max_trials": 1}, overrides=overrides))
    assert member(laboratory, job.plan, 0, {}).spec["train"]["validation_interval"] == 4
    changed = resume.changes(job, None, AutomlSettings(max_trials=8), FOUR_GPUS)
    assert changed is not None
    grown = settings_of(replace(job, changes=changed))
    assert (grown.max_trials, grown.max_concurrent, grown.rungs()) == (8, 4, [1, 3])
    assert any("train.validation_interval: every 1 epoch(s), not 4" in each for each in grown.adjustments)
    assert trial_plan(job, grown, 1, {}, laboratory.planner())[0].spec["train"]["validation_interval"] == 1


def test_what_cannot_be_searched_cannot_become_a_search_either(laboratory: Any) -> None:
    nothing = {"dataset.train.batch_size": [8, 16]}  # six images to train on
    job = ended(planned(laboratory, NO_GPU, {"search_space": nothing, "max_trials": 4}))
    assert said(job.plan, "a study of one trial, the resolved spec as it is: nothing is left to search")
    with pytest.raises(InvalidRequest, match="nothing is left to search"):
        resume.changes(job, None, AutomlSettings(max_trials=4), NO_GPU)
    one_number = {"train.optim.lr": {"min": 1e-3, "max": 4e-3}}
    job = ended(planned(laboratory, NO_GPU, {"search_space": one_number, "algorithm": "cmaes"}))
    with pytest.raises(InvalidRequest, match="two or more numeric keys"):
        resume.changes(job, None, AutomlSettings(max_trials=4), NO_GPU)


def test_a_plain_training_has_no_budget_that_could_grow_and_a_resume_says_what_to_do(laboratory: Any) -> None:
    job = ended(planned(laboratory, NO_GPU, automl_policy="off"))
    with pytest.raises(InvalidRequest, match="train-a is a plain train job") as refused:
        resume.changes(job, None, AutomlSettings(max_trials=4), NO_GPU)
    assert 'automl={"max_trials": 4}' in refused.value.fix
    assert resume.changes(job, 12, None, NO_GPU) is None


def test_later_actions_choose_by_the_metric_that_the_training_was_to_maximise(laboratory: Any) -> None:
    jobs = laboratory.played()
    study = jobs.submit(planned(laboratory, NO_GPU, {"metric": "PQ"}))
    job = jobs.submit(trial_plan(study, settings(study.plan), 0, {}, laboratory.planner())[0], study_id=study.id)
    jobs.store.history.begin(job.id, 1, resumed_from=None, resume_epoch=None, status_offset=0)
    folder = jobs.results_dir(job.id) / "train"
    folder.mkdir(parents=True)
    for epoch, (mean, panoptic) in enumerate([(0.9, 0.1), (0.2, 0.8)]):
        jobs.store.series.write(job.id, 1, epoch, {"mIoU": mean, "PQ": panoptic})
        (folder / f"model_epoch_{epoch:03d}_step_{epoch:05d}.pth").write_bytes(b"weights")
    jobs.cancel(job.id)
    plan = laboratory.planner().plan(EvaluateRequest(parent_job_id=job.id))
    assert plan.checkpoint is not None
    assert plan.checkpoint.epoch == 1
    jobs.close()


def test_intervals_are_clamped_to_the_first_rung_for_all_trials_alike(laboratory: Any) -> None:
    overrides = {"dataset.train.batch_size": 2, "train.validation_interval": 5, "train.checkpoint_interval": 5}
    plan = planned(laboratory, ONE_GPU, overrides=overrides)
    assert said(plan, "every 1 epoch")
    first = member(laboratory, plan, 0, {})
    assert first.spec["train"]["validation_interval"] == 1


def test_checkpoints_every_so_many_steps_stay_so_in_every_trial(laboratory: Any) -> None:
    overrides = {
        "dataset.train.batch_size": 2, "train.validation_interval": 5,
        "train.checkpoint_interval": 500, "train.checkpoint_interval_unit": "step",
    }  # fmt: skip
    plan = planned(laboratory, ONE_GPU, overrides=overrides)
    for number in range(2):
        train = member(laboratory, plan, number, {}).spec["train"]
        assert (train["validation_interval"], train["checkpoint_interval"]) == (1, 500)


def test_a_trial_is_the_studys_spec_with_its_values_checked_like_any_plan(laboratory: Any) -> None:
    plan = planned(laboratory, ONE_GPU)
    trial = member(laboratory, plan, 2, {"train.optim.lr": 1e-3})
    assert trial.spec["train"]["optim"]["lr"] == 1e-3
    assert trial.spec_overrides["train.optim.lr"] == 1e-3
    assert (trial.run_name, trial.automl.route, trial.study) == ("train-study-trial-2", "direct", None)
    assert trial.digest != plan.digest
    with pytest.raises(InvalidRequest, match="hidden_dim"):
        member(laboratory, plan, 3, {"model.mask_former.hidden_dim": 100})


def test_data_is_staged_and_checked_once_by_the_study_and_its_trials_read_it_in_its_folder(laboratory: Any) -> None:
    plan = planned(laboratory, ONE_GPU)
    split = Staging(kind="split", source="/data/a.json", target="{job_dir}/a.json", keys=("dataset.val.panoptic_json",))
    spec = dotted.with_value(plan.spec, "dataset.val.panoptic_json", "{job_dir}/a.json")
    trial = member(laboratory, plan.model_copy(update={"staging": (split,), "spec": spec}), 1, {})
    assert trial.staging == ()
    assert dotted.get(trial.spec, "dataset.val.panoptic_json") == "{home}/jobs/train-study/a.json"


def test_a_batch_that_makes_no_step_is_lowered_and_the_adjustment_is_recorded(laboratory: Any) -> None:
    wishes = {"dataset.train.batch_size": [2, 4, 8]}
    plan = planned(laboratory, ONE_GPU, {"search_space": wishes})  # six images to train on
    assert plan.study["space"]["parameters"][0]["choices"] == [2, 4]  # type: ignore[index]
    study = Job(id="train-study", action="train", state=JobState.RUNNING, plan=plan, created_at=0.0)
    _, adjusted = trial_plan(study, settings(plan), 1, {"dataset.train.batch_size": 8}, laboratory.planner())
    assert "lowered from 8 to 6" in adjusted[0]


def test_what_was_asked_to_be_searched_and_is_not_is_told_with_the_reason(laboratory: Any) -> None:
    rate = {"min": 1e-3, "max": 4e-3}
    cut = planned(laboratory, ONE_GPU, {"search_space": {"dataset.train.batch_size": [2, 4, 8]}})
    assert said(cut, "dataset.train.batch_size is searched in 2, 4, not 2, 4, 8: a step has at most 6 images")
    wishes = {"dataset.train.batch_size": [8, 16], "train.optim.lr": rate}
    dropped = planned(laboratory, ONE_GPU, {"search_space": wishes})
    words = "dataset.train.batch_size is not searched: the training split has too few images for 8, 16: at most 6"
    assert said(dropped, words)
    assert any(words in each for each in settings(dropped).adjustments)  # and in the result
    assert settings(planned(laboratory, ONE_GPU)).adjustments == ()


def test_cmaes_is_refused_where_it_has_no_two_numbers_to_vary(laboratory: Any) -> None:
    wishes = {"train.optim.lr_scheduler": ["MultiStep", "Warmuppoly"]}
    with pytest.raises(InvalidRequest, match="two or more numeric keys"):
        planned(laboratory, ONE_GPU, {"algorithm": "cmaes", "search_space": wishes})


def member(laboratory: Any, plan: Plan, number: int, values: dict[str, Any]) -> Plan:
    study = Job(id="train-study", action="train", state=JobState.RUNNING, plan=plan, created_at=0.0)
    return trial_plan(study, settings(plan), number, values, laboratory.planner())[0]


def ended(plan: Plan) -> Job:
    return Job(id="train-a", action="train", state=JobState.SUCCEEDED, plan=plan, created_at=0.0)


def settings(plan: Plan) -> StudySettings:
    return StudySettings.model_validate(plan.study)
