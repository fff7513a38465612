"""Rungs: who goes on is decided from the reports alone, and twice the same."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from mask2former_mcp.automl.growth import reached
from mask2former_mcp.automl.rungs import RungPruner


def study_of(*curves: list[float]) -> optuna.Study:
    """Trials with these values after epochs 1, 2, ...; the last one is still running."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for number, curve in enumerate(curves):
        reports = dict(enumerate(curve, start=1))
        running = number == len(curves) - 1
        state = TrialState.RUNNING if running else TrialState.COMPLETE
        study.add_trial(create_trial(state=state, value=None if running else curve[-1], intermediate_values=reports))
    return study


def verdict(pruner: RungPruner, *curves: list[float]) -> bool:
    study = study_of(*curves)
    answers = {pruner.prune(study, study.get_trials()[-1]) for _ in range(3)}
    assert len(answers) == 1, "asked twice, it answered differently"
    return answers.pop()


PRUNER = RungPruner(first=2, longest=9, reduction_factor=3)


def test_rungs_stand_at_powers_of_the_factor_below_the_last_epoch() -> None:
    assert PRUNER.rungs == [2, 6]
    assert RungPruner(first=3, longest=9, reduction_factor=3).rungs == [3]
    assert RungPruner(first=9, longest=9, reduction_factor=3).rungs == []


def test_before_a_rung_and_between_rungs_nobody_is_stopped() -> None:
    assert not verdict(PRUNER, [0.5] * 9, [0.1])
    assert not verdict(PRUNER, [0.5] * 9, [0.1, 0.1, 0.1])


def test_at_a_rung_the_best_third_goes_on() -> None:
    assert verdict(PRUNER, [0.5] * 9, [0.1, 0.1])
    assert not verdict(PRUNER, [0.5] * 9, [0.1, 0.6])
    assert verdict(PRUNER, *([[0.5] * 9] * 4), [0.4, 0.4])
    # Six there with this one: the two best of six pass.
    assert not verdict(PRUNER, [0.9] * 9, *([[0.3] * 9] * 4), [0.4, 0.4])


def test_a_rung_counts_at_the_first_report_after_it() -> None:
    study = study_of([0.5] * 9, [0.5])
    late = create_trial(state=TrialState.RUNNING, intermediate_values={3: 0.1})
    study.add_trial(late)
    assert PRUNER.prune(study, study.get_trials()[-1])


def test_a_failed_trial_takes_no_place_among_those_that_go_on() -> None:
    study = study_of([0.3] * 9, [0.2, 0.2])
    failed = create_trial(state=TrialState.FAIL, intermediate_values={1: 0.9, 2: 0.9})
    for _ in range(3):
        study.add_trial(failed)
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values={1: 0.4, 2: 0.4}))
    assert not PRUNER.prune(study, study.get_trials()[-1])


def test_brackets_begin_at_later_rungs_in_turn() -> None:
    pruner = RungPruner(first=1, longest=9, reduction_factor=3, brackets=True)
    assert [pruner._of(number) for number in range(4)] == [[1, 3], [3], [], [1, 3]]


def test_a_stopped_trial_is_credited_with_the_growth_that_finished_ones_showed() -> None:
    finished = create_trial(state=TrialState.COMPLETE, value=0.6, intermediate_values={1: 0.2, 2: 0.4, 3: 0.6})
    stopped = create_trial(state=TrialState.PRUNED, value=0.1, intermediate_values={1: 0.1})
    finished.number, stopped.number = 0, 1
    assert reached([finished, stopped]) == pytest.approx({0: 0.6, 1: 0.3})
    assert reached([stopped]) == pytest.approx({1: 0.1})
