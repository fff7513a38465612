"""Trial 0 runs the resolved spec, also where that lies outside the space that the user gave."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.automl.algorithms import OFFERED
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.search import Search
from mask2former_mcp.automl.space import Parameter, Space

RATE, BATCH, DECAY = "train.optim.lr", "dataset.train.batch_size", "train.optim.weight_decay"
SPACE = Space(
    parameters=(
        Parameter(key=RATE, kind="real", low=1e-4, high=1e-3, log=True),
        Parameter(key=BATCH, kind="choice", choices=(2, 4)),
        Parameter(key=DECAY, kind="real", low=1e-5, high=1e-3, log=True),
    )
)
OUTSIDE = {RATE: 2e-2, BATCH: 1, DECAY: 1e-4}  # of the rates and batches; the decay lies inside


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Any]:
    made: list[Search] = []

    def begin(algorithm: str, resolved: dict[str, Any] = OUTSIDE) -> Search:
        settings = StudySettings(
            algorithm=algorithm, metric="mIoU", max_trials=9, max_concurrent=1, epochs=9, first_rung=1,
            reduction_factor=3, seed=4, space=SPACE,
        )  # fmt: skip
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Search(folder, settings, resolved))
        return made[-1]

    yield begin
    for each in made:
        each.close()


@pytest.mark.parametrize("algorithm", sorted(OFFERED))
def test_a_trial_is_remembered_by_no_other_value_than_the_one_it_ran(search: Any, algorithm: str) -> None:
    study = search(algorithm)
    for number in range(8):
        trial = study.propose()
        assert (
            trial.values == OUTSIDE if number == 0 else all(p.contains(trial.values[p.key]) for p in SPACE.parameters)
        )
        params = study.trials()[number].params
        assert params == pytest.approx({key: trial.values[key] for key in params})
        assert set(params) == ({DECAY} if number == 0 else set(SPACE.keys))
        study.finish(number, 0.5 + 0.01 * number)


@pytest.mark.parametrize("algorithm", sorted(OFFERED))
def test_a_first_trial_outside_the_space_does_not_end_the_search_of_its_keys(search: Any, algorithm: str) -> None:
    study = search(algorithm)
    rates = set()
    for number in range(9):
        rates.add(study.propose().values[RATE])
        study.finish(number, 0.5 + 0.01 * number)
    assert len(rates) == 9
    if OFFERED[algorithm].sampler != "random":
        together = study.study.sampler.infer_relative_search_space(study.study, study.trials()[-1])
        assert {RATE, DECAY} <= set(together)


def test_the_gaussian_process_learns_nothing_from_a_point_that_nobody_ran(search: Any) -> None:
    """Clipped into the space, a splendid trial 0 would draw every proposal to the highest rate."""
    study = search("bayesian")
    for number in range(3):
        trial = study.propose()
        study.finish(number, 0.9 if number == 0 else 0.4 - 100 * trial.values[RATE])
    assert study.propose().values[RATE] < 5e-4
