"""The answer of a check: plain values that survive a trip through JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mask2former_mcp.datasets.problems import SHOWN, Problems
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.datasets.survey import Survey
from mask2former_mcp.formats import label_map

CLASSES_SHOWN = 300  # more than masks can tell apart; a list of everything would drown its reader


@dataclass(frozen=True, slots=True)
class Report:
    """`ready` is None while unfinished. `problems`: at most 20 of `errors` + `warnings`; `by_code` counts all.

    `classes`: at most 300; `counts` has their number.
    """

    finished: bool
    ready: bool | None
    dataset: str
    format: str | None = None
    role: str = "train"
    counts: Mapping[str, int] = field(default_factory=dict)
    classes: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[Mapping[str, Any]] = ()
    errors: int = 0
    warnings: int = 0
    by_code: Mapping[str, int] = field(default_factory=dict)
    derived: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)
    next: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def of_survey(found: Survey, ref: DatasetRef, role: str, checked: int, notes: list[str]) -> Report:
    layout, categories = found.layout, list(found.categories.values())
    derived: dict[str, Any] = {
        "num_classes": len(categories),
        "contiguous_id": True,
        "num_classes_if_not_contiguous": found.largest_id,
        "label_map": str(layout.label_map) if layout.label_map else None,
    }
    if layout.label_map is None and len(categories) <= CLASSES_SHOWN:
        derived["label_map_content"] = [label_map.row(label) for label in label_map.of_categories(categories)]
    more = [f"classes: {CLASSES_SHOWN} of {len(categories)} are shown"] if len(categories) > CLASSES_SHOWN else []
    return Report(
        finished=True,
        ready=found.problems.errors == 0,
        dataset=ref.uri,
        format=layout.format,
        role=role,
        counts={
            "images": len(found.images),
            "annotated_images": len(found.annotated & found.images.keys()),
            "annotations": found.annotations,
            "classes": len(categories),
            "things": sum(c.isthing for c in categories),
            "files_checked": checked,
        },
        classes=[
            {
                "id": c.id,
                "name": c.name,
                "isthing": c.isthing,
                "annotations": found.per_class[c.id],
                "images": found.images_per_class[c.id],
            }
            for c in categories[:CLASSES_SHOWN]
        ],
        derived=derived,
        notes=[*notes, *more],
        **told(found.problems),
    )


def told(problems: Problems) -> dict[str, Any]:
    return {
        "problems": [p.as_dict() for p in problems.shown(SHOWN)],
        "errors": problems.errors,
        "warnings": problems.warnings,
        "by_code": problems.by_code(),
    }
