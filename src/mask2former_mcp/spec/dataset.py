"""The `dataset` block: where images and annotations lie, how they are loaded and augmented."""

from typing import Literal

from mask2former_mcp.spec.field import (
    Int,
    NotNegative,
    OptionalPair,
    Positive,
    Section,
    SizePair,
    Sizes,
    ThreeFactors,
    ThreeReals,
    section,
    spec_field,
)
from mask2former_mcp.spec.search import CLASSES, METRIC, RESOLUTION, Search

Format = Literal["coco", "ade", "coco_panoptic"]


class Split(Section):
    """One of the three splits. Which path keys are read depends on `type`; the others may stay empty."""

    type: Format = spec_field(
        "ade",
        "Annotation format: coco_panoptic reads panoptic_json, panoptic_dir and img_dir; coco reads instance_json and "
        "img_dir; ade reads root_dir and annot_file. The default, ade, is rarely what you have: always set it.",
    )
    name: str = spec_field("", "A name for messages and reports; changes nothing else.")
    panoptic_json: str = spec_field("", "COCO panoptic annotation file. Read when type is coco_panoptic.")
    instance_json: str = spec_field("", "COCO instance annotation file (polygons or RLE). Read when type is coco.")
    img_dir: str = spec_field("", "Folder of the images named by the annotation file.")
    panoptic_dir: str = spec_field(
        "", "Folder of panoptic PNGs (segment id = R + 256 G + 65536 B). Read when type is coco_panoptic."
    )
    root_dir: str = spec_field("", "Folder that the paths in annot_file start from. Read when type is ade.")
    annot_file: str = spec_field(
        "", 'JSON lines, one {"img": path, "segm": path} per image, both below root_dir. Read when type is ade.'
    )
    num_workers: NotNegative = spec_field(1, "Loader processes per GPU; 0 loads in the training process itself.")
    target_size: OptionalPair = spec_field(
        (),
        "[height, width] in pixels that every image is brought to, so that images of several sizes fit one batch; "
        "empty: each keeps its proportions. Needed for a validation or test batch_size above 1; training crops.",
    )


class TrainSplit(Split):
    batch_size: Positive = spec_field(
        1,
        "Images per GPU and step. The step's batch is this times GPUs times nodes, and a split smaller than that "
        "cannot train. Memory grows almost in proportion.",
        math_cond=">0",
        search=Search(scale="choice", choices=(1, 2, 4, 8), note="Bounded by memory; the learning rate moves with it."),
    )


class EvalSplit(Split):
    batch_size: Positive = spec_field(1, "Images per GPU and step; above 1 needs target_size.", math_cond=">0")


class Augmentation(Section):
    """Sizes in pixels. Training also flips (half of the images) and jitters colours; no key turns that off."""

    train_min_size: Sizes = spec_field(
        (640,), "Shorter edge of a training image after resizing; one of these is drawn per image.", search=RESOLUTION
    )
    train_max_size: Int = spec_field(
        2560,
        "Limit for the longer edge of a training image after resizing; a longer one is scaled down further.",
        ge=32,
        automl=True,
        search=RESOLUTION,
    )
    train_crop_size: SizePair = spec_field(
        (640, 640),
        "[height, width] of the random crop. Smaller images are padded right and below; padding takes no part in the "
        "loss. Time and memory of a step grow with its area.",
        search=RESOLUTION,
    )
    test_min_size: Int = spec_field(
        640, "Shorter edge of a validation or test image after resizing.", ge=32, search=METRIC
    )
    test_max_size: Int = spec_field(
        640,
        "Limit for the longer edge of a validation or test image. With the default, equal to test_min_size, it is the "
        "longer edge that becomes 640.",
        ge=32,
        search=METRIC,
    )


class QuantCalibration(Section):
    images_dir: str = spec_field("", "Folder of calibration images. Read when quantize.mode is static_ptq.")


class Dataset(Section):
    train: TrainSplit = section(TrainSplit, "Training split.")
    val: EvalSplit = section(EvalSplit, "Validation split: measured while training and by evaluate.")
    test: EvalSplit = section(EvalSplit, "Images for inference; only img_dir is read.")
    pin_memory: bool = spec_field(True, "Load batches into page-locked memory, for faster copies to a GPU.")
    pixel_mean: ThreeReals = spec_field(
        (0.485, 0.456, 0.406), "Mean of R, G, B that is subtracted, for pixels in 0..1. Keep what the weights saw."
    )
    pixel_std: ThreeFactors = spec_field(
        (0.229, 0.224, 0.225), "Standard deviation of R, G, B that is divided by, for pixels in 0..1."
    )
    augmentation: Augmentation = section(Augmentation, "Resizing and cropping.")
    contiguous_id: bool = spec_field(
        False,
        "How a category becomes a class: true takes its position in the annotation file's category list, false its raw "
        "id. Fixed at training; every later action must repeat it.",
        search=CLASSES,
    )
    label_map: str = spec_field(
        "",
        "JSON list of {id, name, color, isthing} in the order of the annotation file's categories. Names and colours "
        "in results, and which classes are things. Opened by every action but export.",
    )
    quant_calibration_dataset: QuantCalibration = section(QuantCalibration, "Images for static quantization.")
