"""Arguments are read strictly, and a refusal says which one, what it was, and what to write instead."""

import pytest

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.planning.request import REQUESTS, TrainRequest
from mask2former_mcp.server.requests import WaitForJobRequest
from mask2former_mcp.server.tool import parse


def test_an_unknown_argument_names_the_nearest_one():
    with pytest.raises(InvalidRequest, match=r"unknown argument 'epochs'; nearest: .*num_epochs"):
        parse(TrainRequest, {"epochs": 3})


def test_an_unknown_argument_that_is_a_spec_key_is_sent_to_overrides():
    with pytest.raises(InvalidRequest) as refused:
        parse(TrainRequest, {"train.optim.lr": 1e-4})
    assert "overrides" in refused.value.fix


@pytest.mark.parametrize("action", REQUESTS)
def test_every_action_refuses_an_argument_it_does_not_have(action):
    with pytest.raises(InvalidRequest, match="unknown argument 'definitely_not_one'"):
        parse(REQUESTS[action], {"definitely_not_one": 1})


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_epochs": "3"},
        {"num_epochs": 2.5},
        {"num_epochs": 0},
        {"num_epochs": True},
        {"dry_run": 1},
        {"dry_run": "true"},
        {"learning_rate": "0.1"},
        {"learning_rate": 0},
        {"overrides": []},
        {"overrides": "[]"},
        {"overrides": "train"},
        {"train_dataset": 7},
        {"platform": "kubernetes"},
        {"backbone": "resnet50"},
        {"mode": "Panoptic"},
        {"run_name": "Not Allowed"},
        {"automl": {"trials": 3}},
        {"automl": {"max_trials": "3"}},
        {"automl_policy": "yes"},
        {"num_gpus": -1},
        {"preset": 1},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(arguments):
    with pytest.raises(InvalidRequest, match=next(iter(arguments))):
        parse(TrainRequest, arguments)


def test_null_means_not_said():
    assert parse(TrainRequest, {"num_epochs": None, "overrides": None}) == TrainRequest()


def test_an_object_sent_as_its_json_text_is_read():
    assert parse(TrainRequest, {"overrides": '{"train.optim.lr": 0.1}'}).overrides == {"train.optim.lr": 0.1}


def test_a_whole_number_written_as_3_point_0_is_3():
    assert parse(TrainRequest, {"num_epochs": 3.0}).num_epochs == 3


def test_a_wait_above_50_seconds_is_refused():
    with pytest.raises(InvalidRequest, match="timeout_s"):
        parse(WaitForJobRequest, {"job_id": "train-1", "timeout_s": 51})


def test_a_missing_argument_is_named():
    with pytest.raises(InvalidRequest, match="'job_id' is required"):
        parse(WaitForJobRequest, {})
