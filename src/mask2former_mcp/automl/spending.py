"""What a running study has spent, is bound to spend, and has left: epochs of all its trials, and time."""

import time
from collections.abc import Sequence

from mask2former_mcp.automl.algorithms import algorithm
from mask2former_mcp.automl.budget import StudySettings, expected_share
from mask2former_mcp.automl.leaderboard import TrialRecord
from mask2former_mcp.automl.search import Search


class Spending:
    def __init__(self, settings: StudySettings, search: Search, *, started_at: float) -> None:
        """`started_at`: when this attempt of the study began, from which its time budget counts."""
        self.settings, self.search = settings, search
        self._started_at = started_at

    def is_time_up(self) -> bool:
        budget = self.settings.time_budget_s
        return budget is not None and time.time() - self._started_at > budget

    def committed(self, *, without: int | None = None) -> int:
        """Epochs that ended trials trained, and that open ones will have trained when they are next looked at."""
        total = 0
        for trial in self.search.trials():
            if trial.number == without or trial.state.name == "WAITING":
                continue
            trained = trial.last_step or 0
            if trial.state.is_finished():
                total += trained
            else:
                total += self.settings.epochs if trial.number == 0 else self.settings.next_rung(trained)
        return total

    def epochs_trained(self) -> int:
        return sum(trial.last_step or 0 for trial in self.search.trials())

    def epochs_left(self) -> float:
        """Expected, over all trials that run or may still start."""
        settings = self.settings
        share = expected_share(
            algorithm(settings.algorithm), settings.epochs, settings.first_rung, settings.reduction_factor
        )
        left = 0.0
        for trial in self.search.open_trials():
            trained = max(trial.reported, default=0)
            whole = settings.epochs if trial.number == 0 else max(settings.epochs * share, settings.next_rung(trained))
            left += max(0.0, whole - trained)
        to_start = max(0, settings.max_trials - self.search.started())
        left += to_start * settings.epochs * share
        if settings.total_epochs is not None:
            left = min(left, max(0.0, settings.total_epochs - self.epochs_trained()))
        return left

    def eta_s(self, records: Sequence[TrialRecord]) -> float | None:
        """Measured: what an epoch took so far, times what is left, side by side. None before the first epoch ended."""
        rates = [r.duration_s / r.epochs for r in records if r.duration_s and r.epochs]
        if not rates:
            return None
        eta = sorted(rates)[len(rates) // 2] * self.epochs_left() / self.settings.max_concurrent
        if self.settings.time_budget_s is not None:
            eta = min(eta, max(0.0, self.settings.time_budget_s - (time.time() - self._started_at)))
        return eta
