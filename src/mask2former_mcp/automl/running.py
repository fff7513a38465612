"""A running study, one look at a time: observe its trials, stop weak ones, start new ones, until none is left to start.

Every step is read from the two stores (Optuna's file, the jobs) and can be done again: a supervisor that was killed at
any point is followed by one that comes to the same decisions.
"""

import logging
from collections.abc import Mapping

from mask2former_mcp.automl import retention, trials
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.leaderboard import TrialRecord
from mask2former_mcp.automl.record import OUT_OF_TIME, is_halted, record
from mask2former_mcp.automl.search import OpenTrial, Search
from mask2former_mcp.automl.spending import Spending
from mask2former_mcp.errors import Mask2FormerError, NotFound
from mask2former_mcp.jobs.checkpoints import newest_intact
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.lineage import checkpoint
from mask2former_mcp.planning.planner import Planner

HOPELESS = 3  # failures without any success, after which no new trial is started
_PAGE = 200

# What a trial's note `stop` says: why it ended, for good, before its last epoch.
RUNG, BUDGET, HAND = "rung", "budget", "hand"

_log = logging.getLogger("mask2former_mcp.study")


class RunningStudy:
    def __init__(
        self, study: Job, settings: StudySettings, search: Search, jobs: Jobs, planner: Planner, *,
        started_at: float, keep_all: bool,
    ) -> None:  # fmt: skip
        """`started_at`: when this attempt of the study began, from which its time budget counts."""
        self.study, self.settings, self.search = study, settings, search
        self.jobs, self.planner = jobs, planner
        self._started_at, self._keep_all = started_at, keep_all
        self.spending = Spending(settings, search, started_at=started_at)

    def members(self) -> dict[str, Job]:
        """Run name -> job, of every job of this study."""
        found: list[Job] = []
        cursor: str | None = None
        while True:
            page, cursor = self.jobs.store.list(study_id=self.study.id, limit=_PAGE, cursor=cursor)
            found += page
            if cursor is None:
                return trials.children(found, self.study.id)

    def records(self, members: Mapping[str, Job]) -> list[TrialRecord]:
        return [
            record(trial, members.get(trials.trial_name(self.study.id, trial.number)), self.jobs, self.settings)
            for trial in self.search.trials()
            if "values" in trial.user_attrs
        ]

    def take_up(self) -> dict[str, Job]:
        """The members. An only trial that is to train on begins anew in the search, though its job has long trained:
        it is open before anything else happens, so that what it reached counts whatever ends the study next."""
        members = self.members()
        job = members.get(trials.trial_name(self.study.id, 0))
        if job is not None and self.search.started() == 0:
            self._judge(self.search.propose(), job)
        return members

    def step(self) -> bool:
        """Look at every open trial, then start what may start. False: nothing runs and nothing more is to start.

        Trials that the time budget halted are then still open; they go on when the study is resumed.
        """
        members = self.take_up()
        for trial in self.search.open_trials():
            self._observe(trial, members.get(trials.trial_name(self.study.id, trial.number)))
        while self._may_start():
            trial = self.search.propose()
            _log.info("trial %d: %s", trial.number, trial.values)
            self._submit(trial)
        return any(
            not is_halted(trial.notes, members.get(trials.trial_name(self.study.id, trial.number)))
            for trial in self.search.open_trials()
        )

    # -- one trial --

    def _observe(self, trial: OpenTrial, job: Job | None) -> None:
        if job is None or (job.state.terminal and self._epochs_more(job)):
            self._go_on(trial, job)
            return
        stop = trial.notes.get("stop") or self._judge(trial, job)
        if job.state.terminal:
            self._conclude(trial, job, stop)
        elif stop is not None:
            self.jobs.cancel(job.id)
        elif self.spending.is_time_up():
            self._halt(trial, OUT_OF_TIME)
            self.jobs.cancel(job.id)
        elif trial.notes.get("halted"):  # it goes on; whoever let it had no time left to say so
            self.search.note(trial.number, halted="")

    def _halt(self, trial: OpenTrial, cause: str) -> None:
        if not trial.notes.get("halted"):
            self.search.note(trial.number, halted=cause)
            _log.info("trial %d: %s", trial.number, cause)

    def _go_on(self, trial: OpenTrial, job: Job | None) -> None:
        """Start a trial's job, or go on with it from its last checkpoint; with no time left it waits for a resume."""
        if self.spending.is_time_up():
            self._rest(trial, job, OUT_OF_TIME)
            return
        if job is not None:
            self.jobs.resume(job.id, num_epochs=self._epochs_more(job))
        if trial.notes.get("halted"):
            self.search.note(trial.number, halted="")
        if job is None:
            self._submit(trial)

    def _rest(self, trial: OpenTrial, job: Job | None, cause: str) -> None:
        """Open, until the study is resumed."""
        self._halt(trial, cause)
        if job is not None:
            self._tidy(trial.number, job)

    def _epochs_more(self, job: Job) -> int | None:
        """To how many epochs a trial trains on, where its study grew longer than it was; None where it did not."""
        return self.settings.epochs if self.jobs.spec(job.id)["train"]["num_epochs"] < self.settings.epochs else None

    def _judge(self, trial: OpenTrial, job: Job) -> str | None:
        """Report what was measured since, and decide whether it ends here; the decision is noted before the deed."""
        best = float("-inf")
        metric = self.settings.metric
        known = dict(trial.reported)
        for epoch, values in self.jobs.store.series.epochs(job.id).items():
            if metric not in values:
                continue
            best = max(best, values[metric])
            epochs = epoch + 1
            if epochs < max(known, default=0):
                continue
            self.search.report(trial.number, epochs, best)
            known[epochs] = best
            if epochs < self.settings.epochs and (stop := self._verdict(trial.number, epochs)):
                return self._noted(trial.number, stop, f"stopped after {epochs} epochs: {_WORDS[stop]}")
        return None

    def _verdict(self, number: int, epochs: int) -> str | None:
        if self.search.should_stop(number):
            return RUNG
        total = self.settings.total_epochs
        if number == 0 or total is None or not self._at_rung(number, epochs):
            return None
        return BUDGET if self.spending.committed(without=number) + self.settings.next_rung(epochs) > total else None

    def _at_rung(self, number: int, epochs: int) -> bool:
        """Whether this is the first report at or after a rung."""
        passed = max((step for step in self.search.trials()[number].intermediate_values if step < epochs), default=0)
        return any(passed < rung <= epochs for rung in self.settings.rungs())

    def _noted(self, number: int, stop: str, cause: str) -> str:
        self.search.note(number, cause=cause, stop=stop)
        _log.info("trial %d: %s", number, cause)
        return stop

    def _conclude(self, trial: OpenTrial, job: Job, stop: str | None) -> None:
        number = trial.number
        if stop is not None:
            self.search.stop(number)
        elif job.state is JobState.SUCCEEDED:
            self._finish(number, job)
        elif self._goes_on(trial, job):
            self._go_on(trial, job)
            return
        elif trial.notes.get("halted") or self.settings.max_trials == 1:
            self._rest(trial, job, _cause(job))
            return
        elif job.state is JobState.CANCELLED:
            self._noted(number, HAND, _WORDS[HAND])
            self.search.stop(number)
        else:
            self.search.note(number, cause=_cause(job))
            self.search.fail(number)
        self._tidy(number, job)

    def _goes_on(self, trial: OpenTrial, job: Job) -> bool:
        """Whether it stopped with an earlier attempt of the study: noted, or cancelled while no attempt ran (the
        members of a lost study are cancelled without it); an only trial whatever ended it."""
        if (job.finished_at or self._started_at) >= self._started_at:
            return False
        return bool(trial.notes.get("halted")) or job.state is JobState.CANCELLED or self.settings.max_trials == 1

    def _finish(self, number: int, job: Job) -> None:
        """Its value is the best epoch's, among those that kept a checkpoint. Without any metric it has failed."""
        try:
            chosen = checkpoint(self.jobs.parent(job.id), None, metric=self.settings.metric)
        except NotFound as missing:
            self.search.note(number, cause=missing.message)
            self.search.fail(number)
            return
        if chosen.metric is None:
            self.search.note(number, cause=f"it ended without any {self.settings.metric}")
            self.search.fail(number)
            return
        self.search.note(number, epoch=chosen.epoch)
        self.search.finish(number, chosen.metric)

    def _tidy(self, number: int, job: Job) -> None:
        if self._keep_all or self.settings.max_trials == 1:  # an only trial is the plain run, and keeps what that does
            return
        found, folder = self.search.trials()[number], self.jobs.results_dir(job.id) / "train"
        kept: set[int | None] = set()
        if found.state.name in ("COMPLETE", "RUNNING") or found.user_attrs.get("stop") in (BUDGET, HAND):
            kept.add(record(found, job, self.jobs, self.settings).epoch)
        if found.state.name == "RUNNING" and (newest := newest_intact(folder)):
            kept.add(newest.epoch)  # from where it goes on
        gone = retention.keep_only(folder, kept)
        if gone:
            _log.info("trial %d: removed %d checkpoints", number, len(gone))

    def tidy_all(self) -> None:
        """Once more for all that ended: a supervisor may have been killed between the result and the tidying."""
        members = self.members()
        for found in self.search.trials():
            job = members.get(trials.trial_name(self.study.id, found.number))
            if found.state.is_finished() and job is not None and job.state.terminal:
                self._tidy(found.number, job)

    # -- starting --

    def _submit(self, trial: OpenTrial) -> None:
        try:
            plan, adjusted = trials.trial_plan(self.study, self.settings, trial.number, trial.values, self.planner)
            if adjusted:
                self.search.note(trial.number, adjustments=adjusted)
            self.jobs.submit(plan, study_id=self.study.id, trial=trial.number)
        except Mask2FormerError as error:
            if self.settings.max_trials == 1:
                self.search.note(trial.number, halted=trials.why(error))
                return
            self.search.note(trial.number, cause=trials.why(error))
            self.search.fail(trial.number)

    def _may_start(self) -> bool:
        settings, search = self.settings, self.search
        running = len(search.open_trials())
        if running >= settings.max_concurrent or search.started() >= settings.max_trials or self.spending.is_time_up():
            return False
        if self._is_hopeless():
            return False
        first = search.started() == 0
        total = settings.total_epochs
        return first or total is None or self.spending.committed() + settings.first_rung <= total

    def _is_hopeless(self) -> bool:
        """Failures of this attempt: whoever resumes a failed study may have mended the cause."""
        ended = [trial for trial in self.search.trials() if trial.state.is_finished()]
        if any(trial.state.name != "FAIL" for trial in ended):
            return False
        recent = [t for t in ended if t.datetime_complete and t.datetime_complete.timestamp() >= self._started_at]
        return len(recent) >= HOPELESS


_WORDS = {
    RUNG: "not among the best trials at this rung",
    BUDGET: "the study's epochs are used up",
    HAND: "cancelled by hand",
}


def _cause(job: Job) -> str:
    return _WORDS[HAND] if job.state is JobState.CANCELLED else f"{job.state}: {job.message}"[:500]
