"""What of the S3 cache live jobs may read: that is what is never evicted."""

from pathlib import PurePosixPath

from mask2former_mcp.errors import StoreError
from mask2former_mcp.jobs.job import LIVE
from mask2former_mcp.jobs.store import JobStore
from mask2former_mcp.settings import Settings
from mask2former_mcp.staging.eviction import Bound

_PAGE = 200


def cache_bound(settings: Settings, store: JobStore) -> Bound:
    """The operator's size, and the mirrors that jobs which have not ended were planned with."""
    return Bound(limit=int(settings.s3_cache_gb * 2**30), in_use=lambda: _mirrors(store))


def _mirrors(store: JobStore) -> set[str] | None:
    """Folder names; None when a live job does not read, which may use any. A study stages for its trials, and lives as
    long as they do."""
    names: set[str] = set()
    unknown: list[StoreError] = []
    cursor: str | None = None
    while True:
        jobs, cursor = store.list(states=LIVE, limit=_PAGE, cursor=cursor, unreadable=unknown.append)
        names |= {PurePosixPath(s.target).name for job in jobs for s in job.plan.staging if s.kind == "fetch"}
        if cursor is None:
            return None if unknown else names
