"""Checkpoints in a results folder, without torch: which there are, and which of them are whole."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"model_epoch_(\d{3,})_step_(\d{5,})\.pth")  # zero-based epoch, step
_BROKEN = ".broken"


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    path: Path
    epoch: int
    step: int


def saved(folder: Path) -> list[SavedCheckpoint]:
    """Checkpoints of a training folder, oldest first, by the basename alone; links are left out."""
    found = []
    for path in folder.glob("model_epoch_*.pth"):
        match = _NAME.fullmatch(path.name)
        if match and path.is_file() and not path.is_symlink():
            found.append(SavedCheckpoint(path=path, epoch=int(match[1]), step=int(match[2])))
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.epoch))


def newest_intact(folder: Path) -> SavedCheckpoint | None:
    return next((checkpoint for checkpoint in reversed(saved(folder)) if intact(checkpoint.path)), None)


def intact(path: Path) -> bool:
    """Whether the file is a complete torch archive: the zip directory stands at the end, so a torn file has none.

    Checksums are not compared: torch may be told not to write them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = path.stat().st_size
            members = archive.infolist()
            return bool(members) and all(m.header_offset + m.compress_size < size for m in members)
    except (OSError, zipfile.BadZipFile, ValueError):
        return False


def set_aside_broken(folder: Path) -> list[str]:
    """Rename torn checkpoints, so that nobody starts from one; returns their names."""
    names = []
    for checkpoint in saved(folder):
        if not intact(checkpoint.path):
            checkpoint.path.rename(checkpoint.path.with_name(checkpoint.path.name + _BROKEN))
            names.append(checkpoint.path.name)
    return names
