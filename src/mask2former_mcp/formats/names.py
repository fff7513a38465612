"""The dataset formats, and what their files are called in a dataset's folder. Stated here and nowhere else."""

from collections.abc import Mapping

FORMATS = ("coco_panoptic", "coco", "ade")
ANNOTATIONS: Mapping[str, str] = {
    "coco_panoptic": "annotations_panoptic.json",
    "coco": "annotations.json",
    "ade": "annotations.jsonl",
}
LABEL_MAPS: Mapping[str, str] = {
    "coco_panoptic": "label_map_panoptic.json",
    "coco": "label_map.json",
    "ade": "label_map.json",
}
# An archive's name stands for the extracted folder too: images/, images_panoptic/, masks/.
IMAGES = "images.tar.gz"
MASKS: Mapping[str, str] = {"coco_panoptic": "images_panoptic.tar.gz", "ade": "masks.tar.gz"}
