"""What mask AP needs of an image once its detections are matched: a few bits each, in the place of their masks.

pycocotools matches the detections of an image and forms the curves; between the two lies only this, so images can be
matched one by one, wherever they are, and thousands of them take a few megabytes.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

AREAS, OVERLAPS, RECALLS = 4, 10, 101  # pycocotools': all, small, medium, large; IoU .50:.95; recall 0:1
MOST = 100  # detections of a class in an image, the best ones
Entry = Mapping[str, Any]  # an annotation or a detection as COCO has it, but for its ids


class Matches(NamedTuple):
    """Of D detections of one image: classes [D], scores [D], bits [2, area, IoU threshold, D] packed (whether one is
    matched, whether it counts for nothing). truths [K, 1 + area]: a class, and how many of its objects count.
    """

    classes: NDArray[np.int32]
    scores: NDArray[np.float64]
    bits: NDArray[np.uint8]
    truths: NDArray[np.int32]

    def unpacked(self) -> NDArray[np.bool_]:
        shape = 2, AREAS, OVERLAPS, len(self.classes)
        return np.unpackbits(self.bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def match(truths: Sequence[Entry], found: Sequence[Entry], size: tuple[int, int]) -> Matches:
    """One image of (height, width)."""
    classes = sorted({entry["category_id"] for entry in (*truths, *found)})
    with _silence():
        evaluation = COCOeval(_coco(truths, classes, size), _coco(found, classes, size), "segm")
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
    # By class, then by area; a class that is there has a result for each area.
    parts = [evaluation.evalImgs[at : at + AREAS] for at in range(0, AREAS * len(classes), AREAS)]
    bits = [
        np.array([[part[name] > 0 for part in of_class] for name in ("dtMatches", "dtIgnore")]) for of_class in parts
    ]
    counts = [
        [class_, *((part["gtIgnore"] == 0).sum() for part in p)] for class_, p in zip(classes, parts, strict=True)
    ]
    scores = [np.array(of_class[0]["dtScores"]) for of_class in parts]
    nothing = np.zeros((2, AREAS, OVERLAPS, 0), dtype=bool)
    return Matches(
        np.repeat(np.array(classes, dtype=np.int32), [len(part) for part in scores]),
        np.concatenate([np.zeros(0), *scores]),
        np.packbits(np.concatenate([nothing, *bits], axis=-1)),
        np.array(counts, dtype=np.int32).reshape(-1, 1 + AREAS),
    )


def precision(images: Sequence[Matches], classes: Sequence[int]) -> NDArray[np.float64]:
    """[IoU threshold, recall, class, area] of all images together; -1 where a class has no object of the area.

    Of equal scores the earlier image's counts first.
    """
    of, scores, truths = (
        np.concatenate([np.zeros((0, *shape)), *(getattr(image, name) for image in images)])
        for name, shape in (("classes", ()), ("scores", ()), ("truths", (1 + AREAS,)))
    )
    bits = np.concatenate(
        [np.zeros((2, AREAS, OVERLAPS, 0), dtype=bool), *(image.unpacked() for image in images)], axis=-1
    )
    evaluation = COCOeval(iouType="segm")
    evaluation.params.catIds, evaluation.params.imgIds = list(classes), [1]  # all are given as one image
    evaluation.params.maxDets = [max(1, len(of))]
    evaluation._paramsEval = evaluation.params
    evaluation.evalImgs = []
    for class_ in classes:
        mine = of == class_
        counts = truths[truths[:, 0] == class_, 1:].sum(0).astype(int)
        evaluation.evalImgs += [
            {
                "dtScores": scores[mine],
                "dtMatches": matched[:, mine],
                "dtIgnore": ignored[:, mine],
                "gtIgnore": np.zeros(count),
            }
            for matched, ignored, count in zip(*bits, counts, strict=True)
        ]
    with _silence():
        evaluation.accumulate()
    found: NDArray[np.float64] = evaluation.eval["precision"][..., -1]
    return found


def _coco(entries: Sequence[Entry], classes: Sequence[int], size: tuple[int, int]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "height": size[0], "width": size[1]}],
        "annotations": [{**entry, "id": i, "image_id": 1} for i, entry in enumerate(entries, 1)],
        "categories": [{"id": class_} for class_ in classes],
    }
    coco.createIndex()
    return coco


@contextmanager
def _silence() -> Iterator[None]:
    """pycocotools reports its progress to the standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
