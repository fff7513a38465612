"""Pictures of predictions: overlays with contours and names, and panels that put several beside each other.

Only drawing: no files are read or written but by `save`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mask2former_mcp.engine import name_plates
from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.data import Truth
from mask2former_mcp.engine.name_plates import INK, font
from mask2former_mcp.engine.scoring import Outcome
from mask2former_mcp.formats import rle
from mask2former_mcp.formats.extents import NOWHERE, Extent, extents

Picture = NDArray[np.uint8]  # [H, W, 3] RGB
Scene = tuple[Picture, Truth, Outcome]

FILL = 0.5  # share of the class colour over the image
NUMBERS = 255  # that a byte has for patches
SMALLEST_LABELLED = 0.004  # of the image's area: below, a name would cover the object
LEAST_SIDE, MOST_SIDE = 400, 1600  # pixels: small images are enlarged so that names can be read, huge ones reduced
MARGIN, PAPER = 12, (250, 250, 248)
QUALITY = 92  # of JPEG files
LINE = 600  # pixels of the picture's smaller side for each that an outline is broad
STEPS = 0.75  # pixels by which an outline may leave the mask's edge: its steps become slopes


@dataclass(frozen=True, slots=True)
class Patch:
    """A mask [h, w] in its bounding box, whose upper left corner is (top, left) of a map of (height, width) `size`."""

    mask: NDArray[np.bool_]
    top: int
    left: int
    size: tuple[int, int]

    @property
    def place(self) -> tuple[slice, slice]:
        """Where it lies in the image."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass(frozen=True, slots=True)
class Region:
    """What is drawn as one: its pixels, its class, words to print or None, its number in its class."""

    patch: Patch
    class_: int
    name: str | None = None
    number: int = 0


def truth_regions(truth: Truth, classes: Classes, *, semantic: bool = False) -> list[Region]:
    """The annotated objects; one region a class when `semantic`."""
    if semantic:
        return class_regions(truth.class_map(), classes)
    wanted = [(k, int(c)) for k, c in enumerate(truth.labels, 1) if not truth.crowd[k - 1]]
    return _numbered([(cut(truth.mask(k)), c, None) for k, c in wanted], classes)


def outcome_regions(outcome: Outcome, classes: Classes, *, mode: str, threshold: float) -> list[Region]:
    """What the mode predicts: segments, instances with at least the threshold as score, or classes."""
    if mode == "panoptic" and outcome.panoptic is not None:
        found = outcome.panoptic
        patches = [cut_value(found.ids, s.id, found.extents.get(s.id, NOWHERE)) for s in found.segments]
        named = zip(patches, found.segments, strict=True)
        return _numbered([(patch, s.class_, s.score) for patch, s in named], classes)
    if mode == "instance" and outcome.instances is not None:
        best = outcome.instances
        chosen = [i for i, score in enumerate(best.scores) if score >= threshold]
        masks = [(cut(_decoded(best.masks[i])), int(best.classes[i]), float(best.scores[i])) for i in chosen]
        return _numbered(list(reversed(masks)), classes)
    assert outcome.semantic is not None  # of every mode but `instance`
    return class_regions(outcome.semantic, classes)


def class_regions(class_map: NDArray[np.integer], classes: Classes) -> list[Region]:
    """One region per class of an [H, W] map."""
    there = extents(class_map)
    return [Region(cut_value(class_map, c, extent), c, _name(classes, c)) for c, extent in there.items() if c]


def overlay(image: Picture, regions: Sequence[Region], classes: Classes) -> Picture:
    """The image under its regions: translucent colour, where they overlap the last one's, a contour each, names where
    they fit.

    Everything is done within the bounding box of a region: the whole image for each would take most of the time.
    """
    source = (image.shape[0], image.shape[1])
    scale = _scale(source)
    size = (round(source[0] * scale), round(source[1] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = image.copy() if size == source else cv2.resize(image, size[::-1], interpolation=method)
    drawn = [(region, scaled(region.patch, size)) for region in regions if region.patch.mask.size]
    dimmed = cv2.convertScaleAbs(picture, alpha=1 - FILL)
    for at in range(0, len(drawn), NUMBERS):
        _tint(picture, dimmed, [(patch, _shade(classes, region)) for region, patch in drawn[at : at + NUMBERS]])
    named, things = [], classes.things
    weight = max(1 if scale <= 1 else 2, round(min(size) / LINE))  # what was enlarged has no fine lines beside it
    for region, patch in drawn:
        outlines, _ = cv2.findContours(
            patch.mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(patch.left, patch.top)
        )
        smooth = [cv2.approxPolyDP(outline, STEPS, closed=True) for outline in outlines]
        cv2.drawContours(picture, smooth, -1, _contrast(_shade(classes, region)), weight, cv2.LINE_AA)
        if region.name:
            parts = _parts(patch, smooth) if region.class_ in things else [patch]
            named += [(region.name, part) for part in parts]
    _add_names(picture, named)
    return picture


def cut(mask: NDArray[np.bool_]) -> Patch:
    """[H, W] -> what lies in its bounding box; of an empty mask nothing is left."""
    left, top, width, height = rle.bounding_box(mask)
    return Patch(mask[top : top + height, left : left + width], top, left, (mask.shape[0], mask.shape[1]))


def cut_value(labels: NDArray[np.integer[Any]], value: int, extent: Extent) -> Patch:
    """The pixels of an [H, W] map that have the value, where it is known which box they lie in."""
    return Patch(labels[extent.place] == value, extent.top, extent.left, (labels.shape[0], labels.shape[1]))


def scaled(patch: Patch, size: tuple[int, int]) -> Patch:
    """The patch in a map of another (height, width), its steps rounded."""
    source = patch.size
    if source == size:
        return patch
    height, width = patch.mask.shape
    # A frame of one pixel, so that the edge is seen; at the image's own border the mask goes on instead.
    before = [int(patch.top > 0), int(patch.left > 0)]
    after = [int(patch.top + height < source[0]), int(patch.left + width < source[1])]
    framed = np.pad(patch.mask.astype(np.uint8) * 255, list(zip(before, after, strict=True)))
    zoom = [new / old for new, old in zip(size, source, strict=True)]
    start = [max(0, math.floor((at - 1) * z)) for at, z in zip((patch.top, patch.left), zoom, strict=True)]
    ends = (patch.top + height, patch.left + width)
    stop = [min(n, math.ceil((end + 1) * z)) for n, end, z in zip(size, ends, zoom, strict=True)]
    # Centres of pixels lie on centres, as cv2.resize has it.
    first = [(at + 0.5) / z - 0.5 for at, z in zip(start, zoom, strict=True)]
    row, column = first[0] - patch.top + before[0], first[1] - patch.left + before[1]
    inverse = np.array([[1 / zoom[1], 0, column], [0, 1 / zoom[0], row]])
    shape = (stop[1] - start[1], stop[0] - start[0])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(framed, inverse, shape, flags=how, borderMode=cv2.BORDER_REPLICATE) >= 128
    return Patch(found, start[0], start[1], size)


def panel(columns: Sequence[tuple[str, Sequence[Picture]]], classes: Classes, present: Sequence[int]) -> Picture:
    """Titled columns of pictures (row by row the same scene) over a legend of the classes in `present`."""
    rows = [[column[1][r] for column in columns] for r in range(len(columns[0][1]))]
    width = max(sum(p.shape[1] for p in row) + MARGIN * (len(row) + 1) for row in rows)
    letters = font(20)
    legend = _legend(classes, present, width)
    head = 40
    height = head + sum(max(p.shape[0] for p in row) + MARGIN for row in rows) + legend.height
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = head
    for row in rows:
        x = MARGIN
        for (title, _), picture in zip(columns, row, strict=True):
            if y == head:
                draw.text((x + picture.shape[1] / 2, head / 2), title, INK, letters, anchor="mm")
            sheet.paste(Image.fromarray(picture), (x, y))
            x += picture.shape[1] + MARGIN
        y += max(p.shape[0] for p in row) + MARGIN
    sheet.paste(legend, (0, y))
    return np.asarray(sheet)


def comparison(scenes: Sequence[Scene], classes: Classes, *, mode: str, threshold: float) -> Picture:
    """A panel of input, ground truth and prediction, one row per scene."""
    inputs, truths, predictions = [], [], []
    present: set[int] = set()
    for image, truth, outcome in scenes:
        expected = truth_regions(truth, classes, semantic=mode == "semantic")
        found = outcome_regions(outcome, classes, mode=mode, threshold=threshold)
        present.update(region.class_ for region in [*expected, *found])
        inputs.append(overlay(image, [], classes))
        truths.append(overlay(image, expected, classes))
        predictions.append(overlay(image, found, classes))
    columns = [("input", inputs), ("ground truth", truths), ("prediction", predictions)]
    return panel(columns, classes, sorted(present))


def save(path: Path, picture: Picture) -> None:
    """Writes a PNG, or a JPEG where the name says so."""
    if path.suffix == ".jpg":  # the same bytes as Pillow's, which copies the picture twice on the way
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if not done:
            height, width = picture.shape[:2]
            raise OSError(f"{path}: {width} x {height} pixels make no JPEG, whose sides end at 65500")
        path.write_bytes(encoded.data)
    else:
        Image.fromarray(picture).save(path)


def _tint(picture: Picture, dimmed: Picture, drawn: Sequence[tuple[Patch, tuple[int, int, int]]]) -> None:
    """Colours at most NUMBERS patches in one pass over the picture, where they overlap as the last one. dimmed: what is
    seen of it under a colour."""
    numbers: NDArray[np.uint8] = np.zeros(picture.shape[:2], dtype=np.uint8)
    tints: NDArray[np.uint8] = np.zeros((256, 3), dtype=np.uint8)
    for number, (patch, color) in enumerate(drawn, 1):
        cv2.copyTo(np.full(patch.mask.shape, number, np.uint8), patch.mask.view(np.uint8), numbers[patch.place])
        tints[number] = [round(FILL * shade) for shade in color]
    tinted = cv2.applyColorMap(numbers, tints[:, None])
    cv2.copyTo(cv2.add(dimmed, tinted, tinted), numbers, picture)


def _decoded(mask: Mapping[str, Any]) -> NDArray[np.bool_]:
    return rle.decode({"size": [int(n) for n in mask["size"]], "counts": mask["counts"].decode("ascii")})


def _numbered(patches: Sequence[tuple[Patch, int, float | None]], classes: Classes) -> list[Region]:
    """(patch, class, score) as regions. Stuff first, so that things are drawn over it; things with their score, and
    counted per class, so that neighbours differ in shade."""
    seen: dict[int, int] = {}
    regions, things = [], classes.things
    for patch, class_, score in sorted(patches, key=lambda each: each[1] in things):
        name = _name(classes, class_)
        shown = f"{name} {score:.2f}" if score is not None and class_ in things else name
        regions.append(Region(patch, class_, shown, seen.get(class_, 0)))
        seen[class_] = seen.get(class_, 0) + 1
    return regions


def _name(classes: Classes, class_: int) -> str:
    """As it is printed: a name that the font cannot write would be a row of boxes."""
    name = classes[class_].name
    return name if name_plates.legible(name) else f"class {classes[class_].category_id}"


def _shade(classes: Classes, region: Region) -> tuple[int, int, int]:
    """The class's colour, lighter or darker by the instance's number."""
    amount = (0.0, 0.22, -0.2, 0.36, -0.32)[region.number % 5]
    towards = 255 if amount > 0 else 0
    red, green, blue = (round(c + (towards - c) * abs(amount)) for c in classes[region.class_].color)
    return red, green, blue


def _contrast(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """The same hue, clearly darker, or lighter where it is dark already."""
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 70
    red, green, blue = (round(c + (255 - c) * 0.6) if dark else round(c * 0.5) for c in color)
    return red, green, blue


def _parts(patch: Patch, outlines: Sequence[NDArray[np.int32]]) -> list[Patch]:
    """The large parts of a mask, each of which looks like an object of its own; the mask where there is one or none.
    outlines: in the picture."""
    least = SMALLEST_LABELLED * patch.size[0] * patch.size[1]
    large = [outline for outline in outlines if cv2.contourArea(outline) > least]
    if len(large) < 2:
        return [patch]
    found = []
    for outline in large:
        left, top, width, height = cv2.boundingRect(outline)
        inside: NDArray[np.uint8] = np.zeros((height, width), dtype=np.uint8)
        cv2.drawContours(inside, [outline], -1, 1, cv2.FILLED, offset=(-left, -top))
        row, column = top - patch.top, left - patch.left
        mask = inside.view(bool) & patch.mask[row : row + height, column : column + width]
        found.append(Patch(mask, top, left, patch.size))
    return found


def _add_names(picture: Picture, named: Sequence[tuple[str, Patch]]) -> None:
    height, width = picture.shape[:2]
    size = max(11, round(min(height, width) / 35))
    for name, patch in named:
        if np.count_nonzero(patch.mask) > SMALLEST_LABELLED * height * width:
            row, column = name_plates.deepest(patch.mask)
            name_plates.plate(name, size).put(picture, patch.top + row, patch.left + column)


def _legend(classes: Classes, present: Sequence[int], width: int) -> Image.Image:
    letters, swatch, line = font(16), 16, 28
    places: list[tuple[int, int]] = []
    x, y = MARGIN, 4
    for class_ in present:
        needed = swatch + 8 + int(letters.getlength(_name(classes, class_))) + 22
        if x + needed > width and x > MARGIN:
            x, y = MARGIN, y + line
        places.append((x, y))
        x += needed
    sheet = Image.new("RGB", (width, y + line + 4 if present else 1), PAPER)
    draw = ImageDraw.Draw(sheet)
    for class_, (left, top) in zip(present, places, strict=True):
        color = classes[class_].color
        draw.rounded_rectangle(
            (left, top + 4, left + swatch, top + 4 + swatch), 4, fill=color, outline=_contrast(color)
        )
        draw.text((left + swatch + 8, top + 4 + swatch / 2), _name(classes, class_), INK, letters, anchor="lm")
    return sheet


def _scale(size: tuple[int, ...]) -> float:
    if min(size) < LEAST_SIDE:
        return min(LEAST_SIDE / min(size), max(1.0, MOST_SIDE / max(size)))
    return min(1.0, MOST_SIDE / max(size))
