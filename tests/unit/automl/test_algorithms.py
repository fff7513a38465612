"""Algorithms by the names that TAO users know."""

import subprocess
import sys

import optuna
import pytest

from mask2former_mcp.automl import samplers
from mask2former_mcp.automl.algorithms import OFFERED, algorithm, require_numbers
from mask2former_mcp.automl.space import Parameter, Space
from mask2former_mcp.errors import InvalidRequest

SPACE = Space(
    parameters=(
        Parameter(key="lr", kind="real", low=1e-5, high=1e-2, log=True),
        Parameter(key="layers", kind="whole", low=2, high=8, step=2),
        Parameter(key="kind", kind="choice", choices=("a", "b", "c")),
    )
)


def test_bayesian_is_the_default_and_names_are_read_as_people_write_them() -> None:
    assert algorithm(None).name == algorithm("Bayesian ").name == algorithm("b").name == "bayesian"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("pbt", "asha"), ("hyperband_es", "hyperband"), ("dehb", "bohb"), ("bfbo", "bayesian"), ("llm", "bayesian"),
     ("hybrid", "bayesian"), ("autoresearch", "bayesian")],
)  # fmt: skip
def test_what_is_not_offered_is_an_error_with_the_nearest_alternative(name: str, nearest: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        algorithm(name)
    assert f"Nearest: {nearest}" in caught.value.fix
    assert nearest in OFFERED


def test_a_misspelt_name_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(InvalidRequest) as caught:
        algorithm("bayesean")
    assert "Did you mean bayesian?" in caught.value.fix


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_the_same_seed_proposes_the_same_also_when_the_sampler_is_made_anew_for_every_trial(name: str) -> None:
    def proposals(seed: int) -> list[dict[str, object]]:
        study = optuna.create_study(direction="maximize")
        found = []
        for number in range(6):
            study.sampler = samplers.sampler(algorithm(name), SPACE, seed=seed, trial=number)
            trial = study.ask(samplers.distributions(SPACE))
            found.append(trial.params)
            study.tell(trial, -abs(trial.params["lr"] - 1e-3) + 0.001 * number)
        return found

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    first = proposals(1)
    assert first == proposals(1)
    assert first != proposals(2)
    assert len({str(each) for each in first}) > 3


def test_every_sampler_varies_options_too_cmaes_beside_its_numbers() -> None:
    for name in OFFERED:
        study = optuna.create_study(direction="maximize")
        kinds = set()
        for number in range(12):
            study.sampler = samplers.sampler(algorithm(name), SPACE, seed=1, trial=number)
            trial = study.ask(samplers.distributions(SPACE))
            kinds.add(trial.params["kind"])
            study.tell(trial, 0.5)
        assert len(kinds) > 1, name


def test_cmaes_wants_two_numbers_and_names_what_takes_options() -> None:
    require_numbers(algorithm("cmaes"), SPACE.numbers)
    require_numbers(algorithm("tpe"), ())
    with pytest.raises(InvalidRequest, match="two or more numeric keys to vary, and has lr") as caught:
        require_numbers(algorithm("cmaes"), ["lr"])
    assert "Nearest: tpe" in caught.value.fix


def test_parallel_proposals_differ_although_nothing_has_a_result_yet() -> None:
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"lr": 1e-3, "layers": 4, "kind": "a"})
    found = []
    for number in range(4):
        study.sampler = samplers.sampler(algorithm("bayesian"), SPACE, seed=1, trial=number)
        found.append(study.ask(samplers.distributions(SPACE)).params)
    assert found[0]["lr"] == 1e-3
    assert len({str(each) for each in found}) == 4


def test_planning_a_study_loads_neither_optuna_nor_torch() -> None:
    code = (
        "import sys, mask2former_mcp.automl.planner, mask2former_mcp.automl.resume, mask2former_mcp.automl.result; "
        "sys.exit(any(name in sys.modules for name in ('optuna', 'torch', 'sklearn', 'matplotlib')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_search_loads_no_torch() -> None:
    code = (
        "import sys, mask2former_mcp.automl.search; from mask2former_mcp.automl import samplers, gaussian; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
