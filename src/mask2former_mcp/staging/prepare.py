"""The data part of a job's `preparing` phase: archives are extracted, hold-outs written, placeholders become paths."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former_mcp.errors import DatasetError, InvalidRequest
from mask2former_mcp.formats import json_stream, label_map, records
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.formats.records import Category
from mask2former_mcp.staging import archives, download, holdout
from mask2former_mcp.staging.eviction import Bound
from mask2former_mcp.staging.uri import Uri

_TOLD_EVERY_S = 0.5
Progress = Callable[[str, float], None]  # what is being done, 0..1 of it; may raise to stop
Counted = Callable[[int, int], None]  # done, in all


def stage(
    items: Sequence[Mapping[str, Any]],
    *,
    home: Path,
    job_dir: Path,
    progress: Progress | None = None,
    network: download.Network = download.PUBLIC,
    bound: Bound | None = None,
) -> dict[str, str]:
    """Does each item ({kind, source, target, options}) and returns {placeholder path: real path}.

    fetch: an s3:// prefix to a mirror in the cache; options `parts` (files, or folders as `images/`), `state`, and
        `only` (names, where the mirror holds a few objects); `bound` makes room for it.
    extract: `target` receives the archive's content; options `expects` names a file that must lie directly in it.
    split: options `train` and `val` are the targets of the two annotation files, with `format`, `seed`, `fraction`.
    download: an https link to `target` in the cache; options `sha256` where it is known.
    label_map: `target` receives the label map that fits the annotation file; options `format`.
    copy: `target`, a folder, receives the file.
    Done work is not done again. Raises DatasetError, naming the archive and member or the annotation file and record;
    NotAvailable for a file that cannot be downloaded.
    """
    places: dict[str, str] = {}
    beside: dict[str, list[Path]] = {}  # folder in the cache -> the archives that are extracted in it
    for item in items:
        if item["kind"] == "extract":
            beside.setdefault(item["target"].rpartition("/")[0], []).append(real(item["source"], home, job_dir))
    for item in items:
        options = dict(item.get("options") or {})
        source = real(item["source"], home, job_dir)
        if item["kind"] == "fetch":
            places[item["target"]] = str(_fetched(item["source"], options, home, progress, bound))
        elif item["kind"] == "extract":
            target = real(item["target"], home, job_dir)
            _same_archives(target, beside[item["target"].rpartition("/")[0]])
            what = f"extracting {source.name}"
            archives.extract(
                source, target, expects=options.get("expects"),
                progress=_reporter(what, progress), waiting=_waiter(what, progress),
            )  # fmt: skip
            places[item["target"]] = str(target)
        elif item["kind"] == "split":
            train, val = (real(options[name], home, job_dir) for name in ("train", "val"))
            _hold_out(source, options, train, val, progress)
            places |= {options["train"]: str(train), options["val"]: str(val)}
        elif item["kind"] == "download":
            target = real(item["target"], home, job_dir)
            what = f"downloading {target.name}"
            download.fetch(
                item["source"], target, sha256=options.get("sha256"), network=network,
                progress=_reporter(what, progress), waiting=_waiter(what, progress),
            )  # fmt: skip
            places[item["target"]] = str(target)
        elif item["kind"] == "label_map":
            target = real(item["target"], home, job_dir)
            if not target.exists():
                label_map.write(target, label_map.of_categories(_categories(source, options["format"])))
            places[item["target"]] = str(target)
        elif item["kind"] == "copy":
            target = real(item["target"], home, job_dir)
            _copy(source, target)
            places[item["target"]] = str(target)
        else:
            raise InvalidRequest(f"staging of kind {item['kind']!r} is not known", fix="Plan the job again.")
    return places


def _fetched(
    source: str, options: Mapping[str, Any], home: Path, progress: Progress | None, bound: Bound | None
) -> Path:
    # Imported here: boto3 takes a quarter of a second to import, and only data in S3 needs it.
    from mask2former_mcp.staging import mirror

    return mirror.fill(
        Uri.parse(source),
        home,
        options["parts"],
        only=options.get("only", ()),
        expected=options.get("state"),
        progress=_reporter(f"fetching {source}", progress),
        waiting=_waiter(f"fetching {source}", progress),
        bound=bound,
    )


def real(placeholder: str, home: Path, job_dir: Path) -> Path:
    """A placeholder path as it is on this machine."""
    return Path(placeholder.replace("{home}", str(home)).replace("{job_dir}", str(job_dir)))


def _hold_out(source: Path, options: Mapping[str, Any], train: Path, val: Path, progress: Progress | None) -> None:
    if train.exists() and val.exists():
        return
    if progress:
        progress(f"holding out part of {source.name} for validation", 0.0)
    fraction = float(options.get("fraction", holdout.FRACTION))
    holdout.split(source, options["format"], train, val, seed=int(options.get("seed", 0)), fraction=fraction)


def _categories(annotations: Path, format: str) -> list[Category]:
    is_panoptic = format == "coco_panoptic"
    try:
        return [
            records.category(entry, annotations, isthing_required=is_panoptic)
            for key, entry in json_stream.entries(annotations)
            if key == "categories"
        ]
    except FormatError as cause:
        raise DatasetError(str(cause), fix="Repair the annotation file; check_dataset lists its problems.") from cause


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, folder / source.name)
    except OSError as cause:
        raise DatasetError(
            f"{source} cannot be copied: {cause.strerror}", fix="Check the file, then resume."
        ) from cause


def _same_archives(target: Path, sources: Sequence[Path]) -> None:
    """A folder in the cache bears the digest of what is extracted in it: one archive, or ADE's side by side."""
    for source in sources:
        if not source.is_file():
            raise DatasetError(f"{source} does not exist any more", fix="Put the archive back, or plan again.")
    is_ade = target.parent.parent.name == "ade"
    if target.parent.name != (archives.together(sources) if is_ade else archives.key(sources[0])):
        raise DatasetError(
            f"{' or '.join(map(str, sources))} has changed since the plan was made",
            fix="Plan again, so that the plan says what runs.",
        )


def _reporter(what: str, progress: Progress | None) -> Counted | None:
    """Each percent is told; and twice a second anything, because whoever hears it may want to stop."""
    if progress is None:
        return None
    last, told = -1, time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last, told
        percent = 100 * done // max(1, total)
        if percent != last or time.monotonic() - told > _TOLD_EVERY_S:
            last, told = percent, time.monotonic()
            progress(what, percent / 100)

    return report


def _waiter(what: str, progress: Progress | None) -> Callable[[], None] | None:
    return progress and (lambda: progress(f"waiting for another job that is {what}", 0.0))
