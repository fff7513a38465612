"""`check_dataset`: is this folder fit to train on or to evaluate with, and if not, which file and record is wrong."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former_mcp.datasets import background, detect
from mask2former_mcp.datasets.compare import compare
from mask2former_mcp.datasets.files import Roots, Watch, open_all, open_folder
from mask2former_mcp.datasets.layout import Layout, inside_part, no_images
from mask2former_mcp.datasets.problems import Problems
from mask2former_mcp.datasets.reference import DatasetRef, Place, find_images, unread_images
from mask2former_mcp.datasets.report import Report, of_survey, told
from mask2former_mcp.datasets.survey import Survey, survey
from mask2former_mcp.errors import DatasetError
from mask2former_mcp.formats import images
from mask2former_mcp.formats.names import ALSO_CALLED, ANNOTATIONS, IMAGES, LABEL_MAPS, MASKS
from mask2former_mcp.staging import archives
from mask2former_mcp.staging.uri import Uri

DEADLINE_S = 45.0  # of one call
QUICK_S = 8.0  # what is not done by then is done by a process of its own
_BIG_ARCHIVE = 64 << 20
_LISTING_S = 3600.0  # of the background's patience with a store


def check(
    ref: DatasetRef,
    format: str | None = None,
    *,
    home: Path,
    role: str = "train",
    compare_with: DatasetRef | None = None,
    sample: int | None = None,
    deadline_s: float = DEADLINE_S,
    quick_s: float = QUICK_S,
) -> Report:
    """Checks everything (or the annotations and a seeded sample of the files) and answers before the deadline.

    A check that needs longer, or fetches from S3, is done by a detached process: if it is not done by then, the answer
    is unfinished, and the same call later finds the result. `role`: train, eval, or inference (images only). A folder
    of train/ and val/ stands for the one of the role, compared with the other. Raises DatasetError when there is
    nothing that could be checked.
    """
    end = time.monotonic() + deadline_s
    refs = [ref, *([compare_with] if compare_with is not None else [])]
    request = {
        "kind": "check",
        "dataset": ref.uri,
        "format": format,
        "role": role,
        "compare_with": compare_with.uri if compare_with else None,
        "sample": sample,
        "state": [_state(one.outlined(home, end - time.monotonic())) for one in refs],
    }
    work = background.find(request, home)
    if work.finished() is None and not work.alive():
        quick = min(time.monotonic() + quick_s, end)
        try:
            if all(one.kind == "local" for one in refs):
                return run(request, home, _until(quick), big_archives=False)
        except background.OutOfTime:
            pass
        work = background.start(request, home)
    restarted = False
    while (result := work.take()) is None and time.monotonic() < end:
        time.sleep(max(0.0, min(0.1, end - time.monotonic())))
        if work.finished() is None and not work.alive():
            if restarted:
                raise DatasetError(
                    f"the check of {ref.uri} ended twice without a word", fix=f"See {work.folder}/log.txt."
                )
            restarted, work = True, background.start(request, home)
    if result is not None:
        return Report(**result)
    return Report(
        finished=False,
        ready=None,
        dataset=ref.uri,
        format=format,
        role=role,
        progress=work.progress(),
        next="call check_dataset again with the same arguments: the check goes on in the background",
    )


def _state(ref: DatasetRef) -> list[list[Any]]:
    """Changes with the annotation files and with what the file folders hold: repaired data is another request."""
    return [_stamp(ref.path)] if ref.is_image else _state_of_folder(ref.folder())


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def _state_of_folder(folder: Path) -> list[list[Any]]:
    names = {*ANNOTATIONS.values(), *LABEL_MAPS.values(), IMAGES, *MASKS.values()}
    names |= {archives.stem(name) for name in names}
    names |= {other for name in names for other in ALSO_CALLED.get(name, ())}
    parts = [folder, *(folder / part for part in ("train", "val", *ALSO_CALLED["val"]))]
    return [_stamp(path) for part in parts for name in sorted(names) if (path := part / name).exists()]


def run(request: Mapping[str, Any], home: Path, watch: Watch, *, big_archives: bool = True) -> Report:
    """The whole check, in this process. `watch` hears of the progress and may raise to stop."""
    ref = _here(request["dataset"], home, watch)
    other = _here(request["compare_with"], home, watch) if request["compare_with"] else None
    if request["role"] == "inference":
        return _inference(ref, request["sample"], home, watch, big_archives)
    notes: list[str] = []
    ref, other = _sides(ref, other, request["role"], notes)
    format_ = request["format"] or detect.detect_format(ref)
    found, roots = _examined(ref, format_, home, watch, big_archives)
    checked = open_all(found, roots, sample=request["sample"], watch=watch) if roots else 0
    if other is not None:
        beside, other_roots = _examined(other, format_, home, watch, big_archives)
        compare(found, roots, beside, other_roots, watch)
    if request["sample"] is not None and checked < len(found.images):
        notes.append(f"files: a sample of {checked} of {len(found.images)} was opened")
    return of_survey(found, ref, request["role"], checked, notes)


def _here(text: str, home: Path, watch: Watch) -> DatasetRef:
    """The dataset on this disk; what lies in S3 is fetched into the cache that jobs use as well."""
    ref = DatasetRef.parse(text).outlined(home, _LISTING_S)
    if ref.mirror is not None:
        # Imported here: boto3 takes a quarter of a second to import, and only data in S3 needs it.
        from mask2former_mcp.staging import mirror

        mirror.fill(
            Uri.parse(ref.uri), home, [""], expected=ref.mirror.name,
            progress=lambda done, total: watch("fetching", done, total),
        )  # fmt: skip
    return ref


def _sides(
    ref: DatasetRef, other: DatasetRef | None, role: str, notes: list[str]
) -> tuple[DatasetRef, DatasetRef | None]:
    """Where a folder of train/ and val/ was named, its part: the role's one to check, the other one to compare."""
    mine, beside = _parts(ref, role)
    if other is not None:
        beside = _parts(other, role)[1] or other
    if mine != ref:
        also = f" and compared with {beside.uri}" if beside else ""
        notes.append(f"{ref.uri} is divided: {mine.uri} was checked{also}")
    return mine, beside


def _parts(ref: DatasetRef, role: str) -> tuple[DatasetRef, DatasetRef | None]:
    pair = None if detect.annotated(ref) else detect.split(ref)
    if pair is None:
        return (detect.train_alone(ref) if role == "train" else None) or ref, None
    return pair if role == "train" else (pair[1], pair[0])


def _examined(
    ref: DatasetRef, format_: str, home: Path, watch: Watch, big_archives: bool
) -> tuple[Survey, Roots | None]:
    """The annotations, read, and the folders of the files; None where a folder is missing (which is a problem)."""
    layout = Layout.of(ref, format_)
    size = layout.annotations.stat().st_size
    found = survey(layout, progress=lambda done: watch("annotations", min(done, size), size))
    problems = found.problems
    if layout.label_map is None:
        _without_label_map(problems, LABEL_MAPS[format_], ref, format_)
    if format_ == "ade":
        root = _ade_root(layout, ref, home, watch, big_archives, problems)
        return found, Roots(root, root) if root else None
    wanted = [("images", layout.images, IMAGES, layout.first[0])]
    if format_ in MASKS:
        wanted.append(("masks", layout.masks, MASKS[format_], layout.first[1]))
    folders: dict[str, Path] = {}
    for part, place, name, expects in wanted:
        if place is None:
            rule = f"neither {archives.stem(name)}/ nor {name} is there"
            problems.error("missing_file", rule, ref.uri)
        elif (folder := _unpacked(place, expects, home, watch, big_archives, problems)) is not None:
            folders[part] = folder
    if "images" not in folders:
        return found, None
    return found, Roots(folders["images"], folders.get("masks"))


def _without_label_map(problems: Problems, name: str, ref: DatasetRef, format_: str) -> None:
    """A job writes its own from the categories; ADE's annotations hold none."""
    if format_ == "ade":
        problems.error("missing_file", f"{name} is missing: only it names the classes of the masks", ref.uri)
    else:
        rule = f"{name} is missing: each job writes its own from the categories (derived.label_map_content)"
        problems.warning("missing_file", rule, ref.uri)


def _unpacked(
    place: Place, expects: str | None, home: Path, watch: Watch, big: bool, problems: Problems
) -> Path | None:
    """The folder itself, or the archive's content from the cache that jobs use as well."""
    if place.kind == "folder":
        return place.path
    return _extracted(place.path, home / archives.cache_place(place.path), expects, watch, big, problems)


def _extracted(
    archive: Path, target: Path, expects: str | None, watch: Watch, big: bool, problems: Problems
) -> Path | None:
    """The target, filled; None when the archive is refused (a problem). Large ones are left to the background."""
    if not big and not target.is_dir() and archive.stat().st_size > _BIG_ARCHIVE:
        raise background.OutOfTime
    try:
        return archives.extract(
            archive, target, expects=expects, progress=lambda done, total: watch("extracting", done, total)
        )
    except DatasetError as refused:
        problems.error("archive", refused.message, archive)
        return None


def _ade_root(layout: Layout, ref: DatasetRef, home: Path, watch: Watch, big: bool, problems: Problems) -> Path | None:
    """ADE names files below one root; archives are laid side by side in the cache."""
    if not layout.parts:
        return ref.folder()
    root = home / "cache" / "ade" / archives.together([part.path for part in layout.parts])
    for part in layout.parts:
        stem = archives.stem(part.path.name)
        expects = inside_part(layout.first[0 if stem == "images" else 1], stem)
        if _extracted(part.path, root / stem, expects, watch, big, problems) is None:
            return None
    return root


def _inference(ref: DatasetRef, sample: int | None, home: Path, watch: Watch, big: bool) -> Report:
    problems = Problems()
    paths = [ref.path] if ref.is_image else _pictures(ref, home, watch, big, problems)
    checked = open_folder(paths, problems, sample=sample, watch=watch)
    return Report(
        finished=True,
        ready=problems.errors == 0,
        dataset=ref.uri,
        role="inference",
        counts={"images": len(paths), "files_checked": checked},
        **told(problems),
    )


def _pictures(ref: DatasetRef, home: Path, watch: Watch, big: bool, problems: Problems) -> list[Path]:
    place = find_images(ref)
    if place is None:
        raise no_images(ref)
    folder = _unpacked(place, None, home, watch, big, problems)
    if folder is None:
        return []
    if unread := unread_images(folder):
        problems.warning("unread_kind", unread, folder)
    paths = images.listing(folder)
    if not paths:
        problems.error("missing_file", "the folder holds no image file (subfolders are not searched)", folder)
    return paths


def _until(when: float) -> Watch:
    def watch(_stage: str, _done: int, _total: int) -> None:
        if time.monotonic() > when:
            raise background.OutOfTime

    return watch
