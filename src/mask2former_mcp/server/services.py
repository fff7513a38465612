"""What the tools call, each part built on first use: a broken bundle must not keep `doctor` or `list_jobs` away."""

import threading
from collections.abc import Mapping

from mask2former_mcp import bundle
from mask2former_mcp.automl.planner import StudyPlanner
from mask2former_mcp.bundle import Bundle
from mask2former_mcp.jobs.service import Jobs
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
                plain = Planner(self.bundle, self.settings, self.jobs, environ=self.environ)
                self._planner = StudyPlanner(plain)
            return self._planner
