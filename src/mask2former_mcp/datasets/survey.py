"""One pass over an annotation file: what it holds and what is wrong in it. Opens no image, needs little memory.

A category or image may be declared after it is used, so what depends on both is judged at the end.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mask2former_mcp.datasets.layout import Layout
from mask2former_mcp.datasets.problems import Problems
from mask2former_mcp.formats import ade, coco, json_stream, label_map, panoptic, records
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.formats.records import Category, ImageEntry

IGNORED_CLASS = 255  # this label means "do not look": a class may not be called so
Progress = Callable[[int], None]


@dataclass
class Survey:
    """What an annotation file holds. For ADE an image's id is its line, its categories are the label map's."""

    layout: Layout
    problems: Problems = field(default_factory=Problems)
    categories: dict[int, Category] = field(default_factory=dict)
    images: dict[int, ImageEntry] = field(default_factory=dict)
    labels: tuple[label_map.Label, ...] = ()
    annotations: int = 0  # segments, instances, or pairs
    per_class: Counter[int] = field(default_factory=Counter)
    images_per_class: Counter[int] = field(default_factory=Counter)
    annotated: set[int] = field(default_factory=set)  # image ids

    @property
    def largest_id(self) -> int:
        return max(self.categories, default=0)

    @property
    def records(self) -> int:
        """What an epoch counts: annotated images for panoptic, all images otherwise."""
        return len(self.annotated) if self.layout.format == "coco_panoptic" else len(self.images)


def survey(layout: Layout, *, progress: Progress | None = None) -> Survey:
    """Reads the label map and the annotation file. Faults become problems; `progress` may raise to stop."""
    found = Survey(layout)
    _read_labels(found)
    try:
        if layout.format == "ade":
            _ade(found, progress)
        else:
            reader = _Panoptic(found) if layout.format == "coco_panoptic" else _Coco(found)
            for key, entry in json_stream.entries(layout.annotations, progress=progress):
                reader.take(key, entry)
            reader.finish()
    except FormatError as fault:
        found.problems.fault(fault)
    _judge_categories(found)
    _judge_labels(found)
    return found


class _Reader:
    """What both COCO formats share."""

    isthing_required = False
    size_required = False

    def __init__(self, found: Survey) -> None:
        self.found, self.problems, self.file = found, found.problems, found.layout.annotations
        self.used: dict[int, int | str] = {}  # category id -> the first record that uses it
        self.uses: Counter[int] = Counter()
        self.names: set[str] = set()
        self.sections: set[str] = set()
        self.nameless: dict[int, dict[str, Any]] = {}  # categories by id

    def take(self, key: str, entry: Any) -> None:
        self.sections.add(key)
        try:
            if key == "categories":
                category = records.category(entry, self.file, isthing_required=self.isthing_required)
                if category.name != entry.get("name"):
                    self.nameless[category.id] = entry
                self._category(category)
            elif key == "images":
                self._image(records.image(entry, self.file, size_required=self.size_required))
            elif key == "annotations":
                self._annotation(entry)
        except FormatError as fault:
            self.problems.error(fault.code, f"{key}: {fault.reason}", fault.file, fault.id)
            if key == "categories":
                self._keep_unreadable_category(entry)

    def _annotation(self, entry: Any) -> None:
        raise NotImplementedError

    def _category(self, category: Category) -> None:
        if category.id in self.found.categories:
            self.problems.error("duplicate_id", "two categories have this id", self.file, category.id)
        else:
            self.found.categories[category.id] = category

    def _keep_unreadable_category(self, entry: Any) -> None:
        """One complaint about a category is enough: its annotations are not "unknown" as well."""
        id_ = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(id_, int) and not isinstance(id_, bool):
            self.found.categories.setdefault(id_, Category(id_, str(entry.get("name") or f"class_{id_}")))

    def _image(self, image: ImageEntry) -> None:
        if image.id in self.found.images:
            self.problems.error("duplicate_id", "two images have this id", self.file, image.id)
            return
        if image.file_name in self.names:
            self.problems.warning("duplicate_file", f"two images name {image.file_name}", self.file, image.id)
        self.names.add(image.file_name)
        self.found.images[image.id] = image

    def _count(self, category_id: int, record: int | str) -> None:
        self.uses[category_id] += 1
        self.used.setdefault(category_id, record)

    def finish(self) -> None:
        found, problems = self.found, self.problems
        for section in ("images", "categories", "annotations"):
            if section not in self.sections:
                problems.error("missing_key", f'"{section}" is missing or empty', self.file)
        if self.nameless:
            first, entry = next(iter(self.nameless.items()))
            found_there = ", ".join(key[:40] for key in list(entry)[:8])
            why = f'found "name": {entry["name"]!r:.40}' if "name" in entry else f"keys found: {found_there}"
            who = f"category {first} has" if len(self.nameless) == 1 else f"categories {_few(list(self.nameless))} have"
            rule = f"{who} no name; {why}; where no label map names it, category {first} is called class_{first}"
            problems.warning("category_name", rule, self.file, first)
        for id_ in self.uses.keys() - found.categories.keys():
            rule = f"category {id_} is not in categories ({self.uses[id_]} uses)"
            problems.error("unknown_category", rule, self.file, self.used[id_])
        for id_ in sorted(found.annotated - found.images.keys()):
            problems.error("unknown_image", f"image {id_} is annotated but not in images", self.file, id_)
        found.per_class = Counter({c: n for c, n in self.uses.items() if c in found.categories})
        for category in found.categories.values():
            if self.sections >= {"annotations"} and not self.uses[category.id]:
                problems.warning(
                    "unannotated_class", f"class {category.name!r} has no annotation", self.file, category.id
                )


class _Panoptic(_Reader):
    isthing_required = True

    def _annotation(self, entry: Any) -> None:
        record = panoptic.annotation(entry, self.file)
        if record.image_id in self.found.annotated:
            self.problems.error("duplicate_id", "this image has two annotations", self.file, record.image_id)
            return
        self.found.annotated.add(record.image_id)
        self.found.annotations += len(record.segments)
        if record.iscrowd_missing:
            rule = f"{record.iscrowd_missing} segments do not say iscrowd (read as 0)"
            self.problems.warning("iscrowd_missing", rule, self.file, record.image_id)
        if not record.segments:
            self.problems.warning("no_segments", "the image has no segments", self.file, record.image_id)
        for segment in record.segments:
            self._count(segment.category_id, record.image_id)
        self.found.images_per_class.update({s.category_id for s in record.segments})

    def finish(self) -> None:
        super().finish()
        for id_ in sorted(self.found.images.keys() - self.found.annotated):
            self.problems.warning("unannotated_image", "the image has no annotation and is not used", self.file, id_)


class _Coco(_Reader):
    size_required = True

    def __init__(self, found: Survey) -> None:
        super().__init__(found)
        self.ids: set[int] = set()
        self.pairs: set[tuple[int, int]] = set()
        self.early: list[tuple[int, int, list[int]]] = []  # run lengths that came before their image
        self.boxes: list[int | str | None] = []  # annotations without a mask

    def _annotation(self, entry: Any) -> None:
        try:
            one = coco.instance(entry, self.file)
        except coco.BoxOnly as fault:
            self.boxes.append(fault.id)
            return
        if one.id in self.ids:
            self.problems.error("duplicate_id", "two annotations have this id", self.file, one.id)
            return
        self.ids.add(one.id)
        self.found.annotations += 1
        self.found.annotated.add(one.image_id)
        self._count(one.category_id, one.id)
        self.pairs.add((one.image_id, one.category_id))
        if one.iscrowd_missing:
            self.problems.warning(
                "iscrowd_missing", "the annotation does not say iscrowd (read as 0)", self.file, one.id
            )
        if not isinstance(one.segmentation, tuple):
            self._run_lengths(one.id, one.image_id, list(one.segmentation["size"]))
        elif (image := self.found.images.get(one.image_id)) is not None:
            self._inside(one.id, one.segmentation, image)

    def _run_lengths(self, id_: int, image_id: int, size: list[int]) -> None:
        image = self.found.images.get(image_id)
        if image is None:
            self.early.append((id_, image_id, size))
        elif size != [image.height, image.width]:
            rule = f"run lengths are for {size} [height, width], image {image_id} is [{image.height}, {image.width}]"
            self.problems.error("size_mismatch", rule, self.file, id_)

    def _inside(self, id_: int, polygons: coco.Polygons, image: ImageEntry) -> None:
        limits = (image.width or 0, image.height or 0)
        for polygon in polygons:
            if polygon.min() >= -1 and polygon.max() <= min(limits) + 1:
                continue
            for axis in (0, 1):
                values = polygon[axis::2]
                if values.min() < -1 or values.max() > limits[axis] + 1:
                    rule = f"a polygon leaves image {image.id} of {limits[0]} x {limits[1]} (it is cut at the border)"
                    self.problems.warning("outside_image", rule, self.file, id_)
                    return

    def finish(self) -> None:
        early, self.early = self.early, []
        for id_, image_id, size in early:
            if image_id in self.found.images:
                self._run_lengths(id_, image_id, size)
        if self.boxes:
            rule = f"{len(self.boxes)} annotation(s) have only a box; segmentation needs masks"
            self.problems.error("missing_key", rule, self.file, self.boxes[0])
        super().finish()
        self.found.images_per_class.update(category for _, category in self.pairs)


def _ade(found: Survey, progress: Progress | None) -> None:
    file, seen, read = found.layout.annotations, set[str](), 0
    for label in found.labels:
        found.categories[label.id] = Category(label.id, label.name, label.isthing)
    for number, line in ade.lines(file):
        read += len(line)
        if progress and number % 1000 == 0:
            progress(read)
        try:
            pair = ade.pair(number, line, file)
        except FormatError as fault:
            found.problems.fault(fault)
            continue
        if pair.image in seen:
            found.problems.warning("duplicate_file", f"two lines name {pair.image}", file, f"line {number}")
        seen.add(pair.image)
        found.images[number] = ImageEntry(number, pair.image)
        found.annotated.add(number)
        found.annotations += 1
    if not found.images:
        found.problems.error("missing_key", 'no line {"img": ..., "segm": ...} was found', file)


def _read_labels(found: Survey) -> None:
    path = found.layout.label_map
    if path is None:
        return
    try:
        found.labels = label_map.read(path)
    except FormatError as fault:
        found.problems.fault(fault)


def _judge_categories(found: Survey) -> None:
    file = found.layout.label_map if found.layout.format == "ade" else found.layout.annotations
    if len(found.categories) >= IGNORED_CLASS:
        rule = (
            f"{len(found.categories)} classes: at most {IGNORED_CLASS - 1} can be told apart (label 255 means ignore)"
        )
        found.problems.error("too_many_classes", rule, file)
    for id_ in found.categories:
        if found.layout.format == "ade" and not 0 < id_ < IGNORED_CLASS:
            found.problems.error("class_id", f"a mask cannot hold class {id_}: 0 and 255 are void", file, id_)
        elif id_ < 0:
            found.problems.error("class_id", "a class id must not be negative", file, id_)
        elif id_ == 0 or id_ >= IGNORED_CLASS:
            why = "0 means no object" if id_ == 0 else "labels from 255 on are ignored"
            found.problems.warning("class_id", f"class {id_} needs contiguous_id=true: without it {why}", file, id_)


def _judge_labels(found: Survey) -> None:
    """The label map must list the categories in their order: classes are positions, and nothing else ties the two."""
    path, ids = found.layout.label_map, [label.id for label in found.labels]
    if path is None or found.layout.format == "ade" or not found.labels or not found.categories:
        return
    wanted = list(found.categories)
    if ids != wanted:
        what = "order" if sorted(ids) == sorted(wanted) else "ids"
        rule = f"its {what} must be that of categories: {_few(wanted)}, found {_few(ids)}"
        found.problems.error("label_map_order" if what == "order" else "label_map_mismatch", rule, path)
        return
    for label in found.labels:
        category = found.categories[label.id]
        if label.name != category.name and category.name != f"class_{category.id}":
            rule = f"named {label.name!r} here and {category.name!r} in the annotations: the label map's name is used"
            found.problems.warning("label_map_name", rule, path, label.id)
        if found.layout.format == "coco_panoptic" and label.isthing != category.isthing:
            rule = f"isthing is {int(label.isthing)} here and {int(category.isthing)} in the annotations"
            found.problems.error("label_map_mismatch", rule, path, label.id)


def _few(ids: list[int]) -> str:
    return f"[{', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}] ({len(ids)})"
