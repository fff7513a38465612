"""The installable skill: the folder that an agent's client takes, assembled from the bundle."""

import shutil
from pathlib import Path

from mask2former_mcp.bundle import REGENERATE, load, packaged
from mask2former_mcp.errors import BundleError


def assemble(destination: Path, *, source: Path | None = None) -> Path:
    """Write the installable skill folder <destination>/<name>/{SKILL.md,schemas/,references/}; return that folder.

    An older assembly there is replaced. BundleError when something else is in the way, or the source is incomplete.
    """
    root = (source or packaged()).resolve()
    skill = next((path for path in (root / "skill" / "SKILL.md", root / "SKILL.md") if path.is_file()), None)
    if skill is None:
        raise BundleError(f"{root} has no SKILL.md to assemble", fix=REGENERATE)
    folder = destination.expanduser().resolve() / load(root).name
    if folder.exists() and not (folder / "SKILL.md").is_file():
        raise BundleError(
            f"{folder} exists and is not an assembled skill", fix="Name another folder, or move this one."
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(skill, folder / "SKILL.md")
    for part in ("schemas", "references"):
        shutil.copytree(root / part, folder / part)
    return folder
