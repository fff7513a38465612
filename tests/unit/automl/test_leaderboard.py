"""Who wins, and what is shown."""

from typing import Any

from mask2former_mcp.automl import leaderboard
from mask2former_mcp.automl.leaderboard import TrialRecord


def trial(number: int, metric: float | None, status: Any = "finished", **facts: Any) -> TrialRecord:
    facts = {"job_id": f"train-{number}", "epoch": 3, "epochs": 4, "checkpoint": status != "failed", **facts}
    return TrialRecord(trial=number, status=status, metric=metric, **facts)


def test_the_best_finished_trial_wins_and_of_equals_the_earlier_one() -> None:
    found = leaderboard.winner([trial(0, 0.5), trial(1, 0.6), trial(2, 0.6), trial(3, 0.2)])
    assert found is not None
    assert found.trial == 1


def test_failed_and_running_trials_never_win_whatever_they_measured() -> None:
    assert leaderboard.winner([trial(0, 0.9, "failed"), trial(1, 0.8, "running")]) is None


def test_a_stopped_trial_wins_only_where_none_was_finished_and_only_with_a_checkpoint() -> None:
    stopped = trial(1, 0.8, "stopped")
    assert leaderboard.winner([trial(0, 0.5), stopped]) == trial(0, 0.5)
    assert leaderboard.winner([trial(0, 0.9, "failed"), stopped]) == stopped
    assert leaderboard.winner([trial(0, 0.9, "stopped", checkpoint=False), stopped]) == stopped


def test_who_leads_is_who_would_win_now_or_before_any_has_ended_the_best_one_running() -> None:
    running = [trial(1, 0.4, "running", checkpoint=False), trial(2, 0.7, "running"), trial(3, None, "running")]
    assert leaderboard.leading([*running, trial(0, 0.9, "failed")]) == running[1]
    assert leaderboard.leading([*running, trial(0, 0.5)]) == trial(0, 0.5)
    assert leaderboard.leading([trial(3, None, "running")]) is None


def test_the_leaderboard_is_compact_ranked_and_always_shows_the_plain_run() -> None:
    many = [trial(0, 0.1)] + [trial(n, 0.5 + n / 1000) for n in range(1, 30)] + [trial(30, None, "failed", cause="x")]
    lines = leaderboard.compact(many, shown=5)
    assert [line["trial"] for line in lines] == [29, 28, 27, 26, 0]
    assert set(lines[0]) == {"trial", "job_id", "parameters", "metric", "epoch", "status", "duration_s"}


def test_the_table_names_parameters_shortly() -> None:
    text = leaderboard.table([trial(0, 0.51234, parameters={"train.optim.lr": 0.000123456})], "mIoU")
    assert "0.5123" in text
    assert "lr=0.0001235" in text
