"""What a running study is doing, as the store and study.json show it; and how it ended."""

import logging
from typing import Any

from mask2former_mcp.automl import ending, leaderboard, pictures, report, result
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.automl.ending import Evaluations
from mask2former_mcp.automl.report import Outcome
from mask2former_mcp.automl.running import RunningStudy
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job

PICTURES = "pictures"  # their folder

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
        if not busy and best is not None:
            final = self.evaluations.final(members, best)
            self._show("evaluating the winner", 0.99, None, self._metrics(best))
            self._write(Outcome(baseline, final))
            return ending.is_over(final)
        eta = self.running.eta_s(records)
        left, trained = self.running.epochs_left(), self.running.epochs_trained()
        progress = 0.98 * trained / max(trained + left, 1.0)
        leading = leaderboard.leading(records)
        self._show(self._phase(records), progress, eta, self._metrics(leading) if leading else {})
        self._write(Outcome(baseline, eta_s=eta))
        return not busy

    def conclude(self) -> tuple[str, bool]:
        """(closing words, whether somebody won). Checkpoints are tidied, pictures drawn, the result written."""
        self.running.tidy_all()
        members = self.running.members()
        records = self.running.records(members)
        best = leaderboard.winner(records)
        baseline = self.evaluations.baseline(members)
        _log.info("\n%s", leaderboard.table(records, self.settings.metric))
        if best is None:
            causes = "; ".join(f"trial {r.trial}: {r.cause}" for r in records if r.cause)[:600]
            self._write(Outcome(baseline))
            words = f"No trial of {len(records)} ended with a {self.settings.metric} and a checkpoint. {causes}"
            if len(records) >= self.settings.max_trials and not self._waiting():
                words += f'. resume_job tries more with automl={{"max_trials": {self.settings.max_trials + 4}}}.'
            return words + self._waiting(), False
        plain = next((record for record in records if record.trial == 0), None)
        won = report.winner_facts(best, self.running.jobs, self.settings, plain)
        study = self.running.search.study
        drawn, missing = pictures.draw(study, self.folders.results / PICTURES, metric=self.settings.metric)
        paths = [path.relative_to(self.folders.results).as_posix() for path in drawn]
        final = self.evaluations.final(members, best)
        importances = pictures.importances(study)
        self._write(Outcome(baseline, final, won, pictures=paths, not_drawn=missing, importances=importances))
        self._show("done", 0.99, None, self._metrics(best))
        return f"Trial {best.trial} of {len(records)} won ({best.job_id}): {won['reason']}.{self._waiting()}", True

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
        waiting = len(self.running.search.open_trials())
        if not waiting:
            return ""
        return (
            f" {waiting} trial(s) were halted when the time was up:"
            ' resume_job with automl={"time_budget_minutes": ..} goes on with them.'
        )

    def _phase(self, records: list[leaderboard.TrialRecord]) -> str:
        running = [record for record in records if record.status == "running"]
        shown = ", ".join(f"trial {r.trial} epoch {r.epochs}/{self.settings.epochs}" for r in running[:3])
        ended = len(records) - len(running)
        return f"{ended} of at most {self.settings.max_trials} trials ended" + (f"; {shown}" if shown else "")

    def _metrics(self, best: leaderboard.TrialRecord) -> dict[str, float]:
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
