"""What a job left in its results folder."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mask2former_mcp.jobs.checkpoints import saved

_KINDS = {
    ".pth": "checkpoint",
    ".onnx": "onnx",
    ".engine": "engine",
    ".safetensors": "weights",
    ".png": "picture",
    ".jpg": "picture",
    ".jpeg": "picture",
    ".json": "json",
    ".csv": "table",
    ".yaml": "config",
    ".txt": "text",
    ".html": "report",
}
_ID_MAPS = ("panoptic", "semantic")  # folders of inference: their pixels are ids, and nearly black to the eye
_MAX_LISTED = 20_000


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file. `path` is relative to the results folder, `file` absolute, `size` in bytes."""

    path: str
    file: str
    size: int
    kind: str
    epoch: int | None = None
    step: int | None = None
    best: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


def find_artifacts(results: Path, *, best_epoch: int | None) -> list[Artifact]:
    """Files below `results`, checkpoints first, then by path. Links that lead out of the folder are left out."""
    checkpoints = {checkpoint.path: checkpoint for checkpoint in saved(results / "train")}
    last_of_best = max((c.step for c in checkpoints.values() if c.epoch == best_epoch), default=None)
    found = []
    for path, size in _files(results):
        checkpoint = checkpoints.get(path)
        found.append(
            Artifact(
                path=path.relative_to(results).as_posix(),
                file=str(path),
                size=size,
                kind=_kind(path),
                epoch=checkpoint.epoch if checkpoint else None,
                step=checkpoint.step if checkpoint else None,
                best=checkpoint is not None and checkpoint.epoch == best_epoch and checkpoint.step == last_of_best,
            )
        )
    return sorted(found, key=lambda artifact: (artifact.kind != "checkpoint", artifact.path))


def missing(results: Path, patterns: Sequence[str], *, newer_than: float | None = None) -> list[str]:
    """Patterns (globs below `results`) without a non-empty file; with `newer_than`, one written since then."""
    return [
        pattern for pattern in patterns if not any(_counts(path, newer_than) for path in _matching(results, pattern))
    ]


def _matching(results: Path, pattern: str) -> Iterator[Path]:
    if os.path.isabs(pattern):
        yield Path(pattern)
    else:
        yield from results.glob(pattern)


def _counts(path: Path, newer_than: float | None) -> bool:
    try:
        facts = path.stat()
    except OSError:
        return False
    # A second of slack: some file systems keep whole seconds.
    return path.is_file() and facts.st_size > 0 and (newer_than is None or facts.st_mtime >= newer_than - 1.0)


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    root = folder.resolve()
    count = 0
    for directory, names, files in os.walk(folder, followlinks=False):
        names.sort()
        for name in sorted(files):
            path = Path(directory) / name
            try:
                if path.is_symlink() and not path.resolve().is_relative_to(root):
                    continue
                size = path.stat().st_size
            except OSError:
                continue
            count += 1
            if count > _MAX_LISTED:
                return
            yield path, size


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "link"
    if "tfevents" in path.name:
        return "tensorboard"
    if path.name == "status.json":
        return "status"
    if path.suffix.lower() == ".png" and path.parent.name in _ID_MAPS:
        return "id_map"
    return _KINDS.get(path.suffix.lower(), "file")
