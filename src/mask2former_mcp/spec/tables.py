"""What skill_info.yaml is made of: actions, data sources, inferred keys, shorthand names, images. Data, no logic.

The data-source rows are the skill's Per-Action Dataset Requirements table plus the two keys that the ADE format reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mask2former_mcp.formats.names import ANNOTATIONS, FORMATS, IMAGES, LABEL_MAPS, MASKS

NAME = "train-mask2former"
NETWORK_ARCH = "mask2former"
METRIC = "mIoU"
GPU_KEY = "train.num_gpus"
PYTORCH_IMAGE = "nvcr.io/nvidia/tao/tao-toolkit:7.1.0-pyt"
DEPLOY_IMAGE = "nvcr.io/nvidia/tao/tao-toolkit:7.1.0-deploy"

LABEL_MAP: Mapping[str, str] = {"coco_panoptic": LABEL_MAPS["coco_panoptic"], "*": LABEL_MAPS["coco"]}
_COCO = ("coco_panoptic", "coco")


@dataclass(frozen=True)
class Row:
    """One data-source row: the spec key, which dataset argument serves it, the conventional name in that folder.

    `formats` are those whose reader opens the key; `readers` the actions in which somebody opens it at all.
    An archive name stands for the extracted folder too; an exclusive row is built for its formats alone.
    """

    key: str
    source: str
    path: str | Mapping[str, str]
    formats: tuple[str, ...]
    readers: tuple[str, ...]
    exclusive: bool = False

    def entry(self, action: str) -> dict[str, Any]:
        """The row as it stands in skill_info.yaml for one action."""
        archive = isinstance(self.path, str) and self.path.endswith(".tar.gz")
        return {
            "source": self.source,
            "path": dict(self.path) if isinstance(self.path, Mapping) else self.path,
            **({"runtime": "extracted_folder"} if archive else {}),
            "formats": list(self.formats) if action in self.readers else [],
            **({"exclusive": True} if self.exclusive else {}),
        }


def _split_rows(split: str, source: str, readers: tuple[str, ...]) -> tuple[Row, ...]:
    """Rows of one annotated split."""
    return (
        Row(f"dataset.{split}.img_dir", source, IMAGES, _COCO, readers),
        Row(f"dataset.{split}.instance_json", source, ANNOTATIONS["coco"], ("coco",), readers),
        Row(f"dataset.{split}.panoptic_json", source, ANNOTATIONS["coco_panoptic"], ("coco_panoptic",), readers),
        Row(f"dataset.{split}.panoptic_dir", source, MASKS["coco_panoptic"], ("coco_panoptic",), readers),
        Row(f"dataset.{split}.root_dir", source, ".", ("ade",), readers, exclusive=True),
        Row(f"dataset.{split}.annot_file", source, ANNOTATIONS["ade"], ("ade",), readers, exclusive=True),
    )


_LABEL_MAP_ROW = Row(
    "dataset.label_map", "train_datasets", LABEL_MAP, FORMATS, ("train", "evaluate", "inference", "quantize")
)
_SHARED_ROWS = (
    *_split_rows("train", "train_datasets", ("train",)),
    _LABEL_MAP_ROW,
    *_split_rows("val", "eval_dataset", ("train", "evaluate")),
)
_TEST_ROW = Row("dataset.test.img_dir", "eval_dataset", IMAGES, FORMATS, ())
_INFERENCE_ROW = Row("dataset.test.img_dir", "inference_dataset", IMAGES, FORMATS, ("inference",))
# Opened when quantize.mode is static_ptq, which no format decides: the planner asks for it then.
_CALIBRATION_ROW = Row("dataset.quant_calibration_dataset.images_dir", "train_datasets", IMAGES, FORMATS, ())

DATA_SOURCES: Mapping[str, tuple[Row, ...]] = {
    "train": (*_SHARED_ROWS, _TEST_ROW),
    "evaluate": (*_SHARED_ROWS, _TEST_ROW),
    "inference": (*_SHARED_ROWS, _INFERENCE_ROW),
    "quantize": (*_SHARED_ROWS, _TEST_ROW, _CALIBRATION_ROW),
}

SWIN_TINY: Mapping[str, str] = {
    "link": "https://github.com/SwinTransformer/storage/releases/download/v1.0.8/swin_tiny_patch4_window7_224_22k.pth",
    "destination_path": ("/ptm/mask2former/swin_tiny_patch4_window7_224_22k/swin_tiny_patch4_window7_224_22k.pth"),
}
_COMMON_PARAMS: Mapping[str, Any] = {"encryption_key": "key", "results_dir": "output_dir"}

SPEC_PARAMS: Mapping[str, Mapping[str, Any]] = {
    "train": {
        **_COMMON_PARAMS,
        "model.backbone.pretrained_weights": dict(SWIN_TINY),
        "train.pretrained_model_path": "ptm_if_no_resume_model",
        "train.resume_training_checkpoint_path": "resume_model",
    },
    "evaluate": {**_COMMON_PARAMS, "evaluate.checkpoint": "parent_model", "evaluate.trt_engine": "parent_model"},
    "export": {**_COMMON_PARAMS, "export.checkpoint": "parent_model", "export.onnx_file": "create_onnx_file"},
    "inference": {**_COMMON_PARAMS, "inference.checkpoint": "parent_model", "inference.trt_engine": "parent_model"},
    "quantize": {**_COMMON_PARAMS, "quantize.model_path": "parent_model"},
    "gen_trt_engine": {
        **_COMMON_PARAMS,
        "gen_trt_engine.onnx_file": "parent_model",
        "gen_trt_engine.trt_engine": "create_engine_file",
    },
}

SHORTHAND: Mapping[str, str] = {
    "num_epochs": "train.num_epochs",
    "batch_size": "dataset.train.batch_size",
    "val_batch_size": "dataset.val.batch_size",
    "test_batch_size": "dataset.test.batch_size",
    "learning_rate": "train.optim.lr",
    "mode": "model.mode",
    "num_classes": "model.sem_seg_head.num_classes",
    "contiguous_id": "dataset.contiguous_id",
    "input_width": "export.input_width",
    "input_height": "export.input_height",
    "pretrained_backbone": "model.backbone.pretrained_weights",
    "resume_checkpoint": "train.resume_training_checkpoint_path",
}

# Files an action opens beyond its data sources, and files it writes beyond results_dir.
EXTRA_INPUTS: Mapping[str, tuple[str, ...]] = {
    "train": (),
    "evaluate": ("evaluate.checkpoint",),
    "export": ("export.checkpoint",),
    "inference": ("inference.checkpoint",),
    "quantize": ("quantize.model_path",),
    "gen_trt_engine": ("gen_trt_engine.onnx_file",),
}
OPTIONAL_INPUTS: Mapping[str, tuple[str, ...]] = {
    "train": (
        "model.backbone.pretrained_weights",
        "train.pretrained_model_path",
        "train.resume_training_checkpoint_path",
    ),
    "evaluate": ("evaluate.trt_engine",),
    "inference": ("inference.trt_engine",),
}
EXTRA_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "export": ("export.onnx_file",),
    "gen_trt_engine": ("gen_trt_engine.trt_engine",),
}
