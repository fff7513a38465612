"""Which checkpoints of a trial stay: the best of one that counts, the last too while it may go on, none of a loser."""

from collections.abc import Container
from pathlib import Path

from mask2former_mcp.jobs.checkpoints import saved


def keep_only(folder: Path, epochs: Container[int | None]) -> list[str]:
    """Remove checkpoints of a training folder but for these epochs; returns the names of what went.

    The `latest` link goes with the file it names. Done again, it finds nothing to do.
    """
    gone = []
    for checkpoint in saved(folder):
        if checkpoint.epoch not in epochs:
            checkpoint.path.unlink(missing_ok=True)
            gone.append(checkpoint.path.name)
    for link in folder.glob("*_latest.pth"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    return gone
