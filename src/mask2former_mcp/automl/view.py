"""What a running study is doing, as the store and study.json show it; and how it ended."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mask2former_mcp.automl import ending, leaderboard, pictures, report, result, trials
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.ending import Evaluations
from mask2former_mcp.automl.leaderboard import TrialRecord
from mask2former_mcp.automl.record import OUT_OF_TIME
from mask2former_mcp.automl.report import Outcome
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job, JobState
from mask2former_mcp.jobs.verdict import Verdict

PICTURES = "pictures"  # their folder
ONE_TRIAL = "AutoML policy: auto. This is a study of one trial, the resolved spec itself"
_NO_PICTURES = "one trial has nothing to be compared with"

_log = logging.getLogger("mask2former_mcp.study")


class StudyView:
    """One per supervisor. Writes only what changed."""

    def __init__(
        self, job: Job, settings: StudySettings, running: RunningStudy, evaluations: Evaluations, folders: Folders
    ) -> None:
        self.job, self.settings, self.running = job, settings, running
        self.evaluations, self.folders = evaluations, folders
        self.store = running.jobs.store
        self._shown: dict[str, Any] = {}
        self._written: dict[str, Any] = {}

    def look(self) -> bool:
        """One step; True when nothing is left to do but to say how it ended."""
        members = self.running.members()
        baseline = self.evaluations.baseline(members)
        if not ending.is_over(baseline):
            self._show("evaluating the starting weights", 0.0, None, {})
            self._write(Outcome(baseline))
            return False
        busy = self.running.step()
        members = self.running.members()
        records = self.running.records(members)
        best = leaderboard.winner(records)
        if not busy and best is not None and best.status != "failed":
            final = self.evaluations.final(members, best, baseline)
            self._show("evaluating the winner", 0.99, None, self._metrics(best))
            self._write(Outcome(baseline, final))
            return ending.is_over(final)
        if self.settings.max_trials == 1:
            self._show_only(members)
        else:
            self._show_all(records)
        self._write(Outcome(baseline, eta_s=self.running.spending.eta_s(records)))
        return not busy

    def _show_only(self, members: Mapping[str, Job]) -> None:
        """The study as its only trial's job shows itself."""
        job = members.get(trials.trial_name(self.job.id, 0))
        if job is not None:
            self._show(job.phase, 0.99 * job.progress, job.eta_s, job.metrics)

    def _show_all(self, records: list[TrialRecord]) -> None:
        left, trained = self.running.spending.epochs_left(), self.running.spending.epochs_trained()
        progress = 0.98 * trained / max(trained + left, 1.0)
        leading = leaderboard.leading(records)
        metrics = self._metrics(leading) if leading else {}
        self._show(self._phase(records), progress, self.running.spending.eta_s(records), metrics)

    def conclude(self) -> Verdict:
        """How it ended. Checkpoints are tidied, pictures drawn, the result written."""
        self.running.tidy_all()
        members = self.running.members()
        records = self.running.records(members)
        best = leaderboard.winner(records)
        baseline = self.evaluations.baseline(members)
        _log.info("\n%s", leaderboard.table(records, self.settings.metric))
        found = Outcome(baseline)
        words = ""
        if best is not None:
            plain = next((record for record in records if record.trial == 0), None)
            won = report.winner_facts(best, self.running.jobs, self.settings, plain)
            words = f"Trial {best.trial} of {len(records)} won ({best.job_id}): {won['reason']}.{self._waiting()}"
            found = self._pictured(Outcome(baseline, winner=won))
            if best.status != "failed":
                found = replace(found, final=self.evaluations.final(members, best, baseline))
                self._show("done", 0.99, None, self._metrics(best))
        self._write(found)
        only = members.get(trials.trial_name(self.job.id, 0)) if self.settings.max_trials == 1 else None
        if only is not None and records and (verdict := self._of_only(only, records[0])):
            return verdict
        if best is None:
            return Verdict(JobState.FAILED, self._why_nobody(records) + self._waiting(), "no_winner")
        return Verdict(JobState.SUCCEEDED, words)

    def _of_only(self, job: Job, trial: TrialRecord) -> Verdict | None:
        """An only trial's end is the study's. None where the study has more to say of it."""
        if trial.status == "finished":
            return Verdict(JobState.SUCCEEDED, f"{job.message} {ONE_TRIAL} ({job.id}).")
        if job.state in (JobState.FAILED, JobState.LOST):
            return Verdict(JobState.FAILED, job.message, job.error_code)
        if job.state is JobState.CANCELLED and not self._waiting():
            return Verdict(JobState.CANCELLED, f"Its only trial, {job.id}, was cancelled. resume_job goes on with it.")
        return None

    def _why_nobody(self, records: Sequence[TrialRecord]) -> str:
        if not records and self.running.spending.is_time_up():
            return (
                "The time budget ended before the first trial began:"
                ' resume_job with automl={"time_budget_minutes": ..} begins it.'
            )
        causes = "; ".join(f"trial {r.trial}: {r.cause}" for r in records if r.cause)[:600]
        words = f"No trial of {len(records)} ended with a {self.settings.metric} and a checkpoint. {causes}"
        if self._waiting():
            return words
        if self.running.search.open_trials():  # an only trial's job could not be made
            return f"{words.removesuffix('.')}. Then resume_job tries the same trial again."
        if len(records) >= self.settings.max_trials:
            words += f'. resume_job tries more with automl={{"max_trials": {self.settings.max_trials + 4}}}.'
        return words

    def _pictured(self, outcome: Outcome) -> Outcome:
        if self.settings.max_trials == 1:
            return replace(outcome, not_drawn=dict.fromkeys(pictures.NAMES, _NO_PICTURES))
        study = self.running.search.study
        drawn, missing = pictures.draw(study, self.folders.results / PICTURES, metric=self.settings.metric)
        paths = [path.relative_to(self.folders.results).as_posix() for path in drawn]
        return replace(outcome, pictures=paths, not_drawn=missing, importances=pictures.importances(study))

    def halt(self) -> None:
        """After a cancel: where every trial stands, and the best so far, which later actions may use meanwhile."""
        records = self.running.records(self.running.members())
        best = leaderboard.winner(records)
        plain = next((record for record in records if record.trial == 0), None)
        before = result.read(self.folders.results) or {}
        baseline = before.get("baseline") or report.unavailable("the study was cancelled before")
        won = report.winner_facts(best, self.running.jobs, self.settings, plain) if best else None
        self._write(Outcome(baseline, winner=won, pictures=before.get("pictures", ())))

    def _waiting(self) -> str:
        """What to say of trials that the time budget halted."""
        waiting = sum(trial.notes.get("halted") == OUT_OF_TIME for trial in self.running.search.open_trials())
        if not waiting:
            return ""
        return (
            f" {waiting} trial(s) were halted when the time was up:"
            ' resume_job with automl={"time_budget_minutes": ..} goes on with them.'
        )

    def _phase(self, records: list[TrialRecord]) -> str:
        running = [record for record in records if record.status == "running"]
        shown = ", ".join(f"trial {r.trial} epoch {r.epochs}/{self.settings.epochs}" for r in running[:3])
        ended = len(records) - len(running)
        return f"{ended} of at most {self.settings.max_trials} trials ended" + (f"; {shown}" if shown else "")

    def _metrics(self, best: TrialRecord) -> dict[str, float]:
        if best.job_id is None or best.epoch is None:
            return {}
        return dict(self.store.series.epochs(best.job_id).get(best.epoch, {}))

    def _show(self, phase: str, progress: float, eta_s: float | None, metrics: dict[str, float]) -> None:
        shown = {"phase": phase, "progress": round(progress, 3), "metrics": metrics}
        if shown != self._shown:
            self._shown = shown
            self.store.update(self.job.id, self.job.attempt, eta_s=eta_s, **shown)

    def _write(self, outcome: Outcome) -> None:
        records = self.running.records(self.running.members())
        duration = self.store.history.seconds(self.job.id)
        content = report.compose(self.job.id, self.settings, records, outcome, duration)
        # Times that pass are no news: rewritten when anything else changed.
        news = {
            **content,
            "eta_s": None,
            "duration_s": 0,
            "leaderboard": [{**x, "duration_s": 0} for x in content["leaderboard"]],
        }
        news["trials"] = [{**x, "duration_s": 0} for x in content["trials"]]
        if news != self._written:
            self._written = news
            result.write(self.folders.results, content)
