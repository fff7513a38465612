"""What a job checks of its data between staging and training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mask2former_mcp.datasets.compare import same_categories
from mask2former_mcp.datasets.files import Roots, Watch, absent, open_all
from mask2former_mcp.datasets.layout import Layout
from mask2former_mcp.datasets.problems import Problem
from mask2former_mcp.datasets.survey import Survey, survey
from mask2former_mcp.errors import DatasetError

DECODED = 2000  # records per role: seconds, where a whole large set would take minutes


def verify(
    dataset: Mapping[str, Any], roles: Sequence[str], *, decode: int = DECODED, watch: Watch | None = None
) -> None:
    """Looks at the spec's own `dataset` section (nested, with real paths) before a trainer starts.

    For each role (train, val): the annotations, that every named file exists, that a seeded sample of `decode` records
    opens, and that the roles have the same classes. Raises DatasetError with the first errors and their total.
    """
    first: Survey | None = None
    worst: list[Problem] = []
    counts: Counter[str] = Counter()
    errors = 0
    for role in roles:
        found = _looked_at(Layout.of_spec(dataset, role), decode, watch or _ignore)
        if first is not None:
            same_categories(found, first)
        first = first or found
        errors += found.problems.errors
        counts.update(found.problems.by_code())
        worst += [p for p in found.problems.shown() if p.severity == "error"]
    if errors:
        raise DatasetError(
            f"the data is not fit for this job: {errors} errors. " + "; ".join(map(_sentence, worst[:3])),
            fix="check_dataset lists the problems with file and id.",
            details={"by_code": dict(counts), "errors": errors},
        )


def _looked_at(layout: Layout, decode: int, watch: Watch) -> Survey:
    found = survey(layout)
    if layout.images is not None:
        roots = Roots(layout.images.path, layout.masks.path if layout.masks else None)
        lost = list(absent(found, roots))
        for path in lost:
            found.problems.error("missing_file", "the file does not exist", path)
        if not lost:
            open_all(found, roots, sample=decode, watch=watch)
    return found


def _sentence(problem: Problem) -> str:
    return f"{problem.file}: {problem.sentence}" if problem.file else problem.sentence


def _ignore(_stage: str, _done: int, _total: int) -> None:
    return
