"""What the tools call, each part built on first use: a broken bundle must not keep `doctor` or `list_jobs` away."""

import threading
from collections.abc import Mapping, Sequence

from mask2former_mcp import bundle
from mask2former_mcp.automl.planner import StudyPlanner
from mask2former_mcp.bundle import Bundle
from mask2former_mcp.jobs.service import Jobs
from mask2former_mcp.lineage import Earlier, Parent
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.settings import Settings


class Services:
    """Settings, bundle, planner and jobs of one server. A part that fails to build is tried again at the next call."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = dict(environ)
        self._lock = threading.RLock()
        self._settings: Settings | None = None
        self._bundle: Bundle | None = None
        self._jobs: Jobs | None = None
        self._planner: StudyPlanner | None = None

    @property
    def settings(self) -> Settings:
        with self._lock:
            if self._settings is None:
                self._settings = Settings.load(self.environ)
            return self._settings

    @property
    def bundle(self) -> Bundle:
        with self._lock:
            if self._bundle is None:
                self._bundle = bundle.load(self.settings.skill_dir)
            return self._bundle

    @property
    def jobs(self) -> Jobs:
        with self._lock:
            if self._jobs is None:
                self._jobs = Jobs(self.settings, self.environ)
            return self._jobs

    @property
    def planner(self) -> StudyPlanner:
        with self._lock:
            if self._planner is None:
                plain = Planner(self.bundle, self.settings, _FinishedWork(self), environ=self.environ)
                self._planner = StudyPlanner(plain)
            return self._planner


class _FinishedWork:
    """The jobs as the planner sees them, opened when they are asked for: a plan needs no store until it has a parent,
    and a damaged store must not keep a dry run away."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def parent(self, job_id: str) -> Parent:
        return self._services.jobs.parent(job_id)

    def earlier(self, action: str) -> Sequence[Earlier]:
        return self._services.jobs.earlier(action)
