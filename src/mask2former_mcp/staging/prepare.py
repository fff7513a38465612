"""The data part of a job's `preparing` phase: archives are extracted, hold-outs written, placeholders become paths."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former_mcp.errors import DatasetError, InvalidRequest
from mask2former_mcp.staging import archives, download, holdout
from mask2former_mcp.staging.eviction import Bound
from mask2former_mcp.staging.uri import Uri

Progress = Callable[[str, float], None]  # what is being done, 0..1 of it


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
    Done work is not done again. Raises DatasetError, naming the archive and member or the annotation file and record;
    NotAvailable for a file that cannot be downloaded.
    """
    places: dict[str, str] = {}
    for item in items:
        options = dict(item.get("options") or {})
        source = real(item["source"], home, job_dir)
        if item["kind"] == "fetch":
            places[item["target"]] = str(_fetched(item["source"], options, home, progress, bound))
        elif item["kind"] == "extract":
            target = real(item["target"], home, job_dir)
            _same_archive(source, target)
            report = _reporter(f"extracting {source.name}", progress)
            archives.extract(source, target, expects=options.get("expects"), progress=report)
            places[item["target"]] = str(target)
        elif item["kind"] == "split":
            train, val = (real(options[name], home, job_dir) for name in ("train", "val"))
            if not (train.exists() and val.exists()):
                if progress:
                    progress(f"holding out part of {source.name} for validation", 0.0)
                fraction = float(options.get("fraction", holdout.FRACTION))
                holdout.split(
                    source, options["format"], train, val, seed=int(options.get("seed", 0)), fraction=fraction
                )
            places |= {options["train"]: str(train), options["val"]: str(val)}
        elif item["kind"] == "download":
            target = real(item["target"], home, job_dir)
            report = _reporter(f"downloading {target.name}", progress)
            download.fetch(item["source"], target, sha256=options.get("sha256"), progress=report, network=network)
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
        bound=bound,
    )


def real(placeholder: str, home: Path, job_dir: Path) -> Path:
    """A placeholder path as it is on this machine."""
    return Path(placeholder.replace("{home}", str(home)).replace("{job_dir}", str(job_dir)))


def _same_archive(source: Path, target: Path) -> None:
    if not source.is_file():
        raise DatasetError(f"{source} does not exist any more", fix="Put the archive back, or plan again.")
    if target.parent.parent.name == "archives" and target.parent.name != archives.key(source):
        raise DatasetError(
            f"{source} has changed since the plan was made", fix="Plan again, so that the plan says what runs."
        )


def _reporter(what: str, progress: Progress | None) -> archives.Progress | None:
    if progress is None:
        return None
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // max(1, total)
        if percent != last:
            last = percent
            progress(what, percent / 100)

    return report
