"""The deploy twin: the same network as a TensorRT engine, in NVIDIA's deploy image. Data for its files.

`evaluate` and `inference` here mean the TensorRT variants of those actions.
"""

from collections.abc import Mapping
from typing import Any

from mask2former_mcp.formats.names import ANNOTATIONS, FORMATS, IMAGES, MASKS
from mask2former_mcp.spec.tables import DEPLOY_IMAGE, LABEL_MAP, Row

NAME = "mask2former-deploy"
IMAGE = DEPLOY_IMAGE

_VAL = ("evaluate",)
DATA_SOURCES: Mapping[str, tuple[Row, ...]] = {
    "evaluate": (
        Row("dataset.val.panoptic_json", "eval_dataset", ANNOTATIONS["coco_panoptic"], ("coco_panoptic",), _VAL),
        Row("dataset.val.instance_json", "eval_dataset", ANNOTATIONS["coco"], ("coco",), _VAL),
        Row("dataset.val.img_dir", "eval_dataset", IMAGES, ("coco_panoptic", "coco"), _VAL),
        Row("dataset.val.panoptic_dir", "eval_dataset", MASKS["coco_panoptic"], ("coco_panoptic",), _VAL),
        Row("dataset.label_map", "eval_dataset", LABEL_MAP, FORMATS, _VAL),
    ),
    "inference": (
        Row("dataset.test.img_dir", "inference_dataset", IMAGES, FORMATS, ("inference",)),
        Row("dataset.label_map", "train_datasets", LABEL_MAP, FORMATS, ("inference",)),
    ),
}
INPUTS: Mapping[str, tuple[str, ...]] = {
    "gen_trt_engine": ("gen_trt_engine.onnx_file",),
    "evaluate": ("evaluate.trt_engine",),
    "inference": ("inference.trt_engine",),
}
OUTPUTS: Mapping[str, tuple[str, ...]] = {"gen_trt_engine": ("gen_trt_engine.trt_engine",)}
SPEC_PARAMS: Mapping[str, Mapping[str, str]] = {
    "gen_trt_engine": {
        "results_dir": "output_dir",
        "gen_trt_engine.onnx_file": "parent_model",
        "gen_trt_engine.trt_engine": "create_engine_file",
    },
    "evaluate": {"results_dir": "output_dir", "evaluate.trt_engine": "parent_model"},
    "inference": {"results_dir": "output_dir", "inference.trt_engine": "parent_model"},
}
SHORTHAND: Mapping[str, str] = {
    "trt_data_type": "gen_trt_engine.tensorrt.data_type",
    "trt_engine": "gen_trt_engine.trt_engine",
    "batch_size": "dataset.val.batch_size",
    "test_batch_size": "dataset.test.batch_size",
    "mode": "model.mode",
    "num_classes": "model.sem_seg_head.num_classes",
    "contiguous_id": "dataset.contiguous_id",
    "object_mask_threshold": "model.object_mask_threshold",
}

_RUN: Mapping[str, Any] = {
    "results_dir": "/results",
    "dataset": {
        "label_map": "/data/label_map_panoptic.json",
        "contiguous_id": False,
        "val": {
            "type": "coco_panoptic",
            "name": "coco_panoptic_val",
            "panoptic_json": "/data/annotations_panoptic.json",
            "instance_json": "/data/annotations.json",
            "img_dir": "/data/images",
            "panoptic_dir": "/data/images_panoptic",
            "batch_size": 1,
            "num_workers": 2,
        },
        "test": {
            "type": "coco_panoptic",
            "name": "coco_panoptic_test",
            "img_dir": "/data/images",
            "batch_size": 1,
            "num_workers": 2,
        },
    },
    "model": {
        "mode": "semantic",
        "object_mask_threshold": 0.0,
        "overlap_threshold": 0.8,
        "sem_seg_head": {"norm": "GN", "num_classes": 201},
    },
    "inference": {"trt_engine": "/results/mask2former.engine"},
    "evaluate": {"trt_engine": "/results/mask2former.engine"},
}
TEMPLATES: Mapping[str, Mapping[str, Any]] = {
    "gen_trt_engine": {
        "results_dir": "/results",
        "gen_trt_engine": {
            "gpu_id": 0,
            "onnx_file": "/models/model.onnx",
            "trt_engine": "/results/mask2former.engine",
            "tensorrt": {
                "data_type": "FP16",
                "workspace_size": 1024,
                "min_batch_size": 1,
                "opt_batch_size": 1,
                "max_batch_size": 1,
            },
        },
    },
    "evaluate": _RUN,
    "inference": _RUN,
}
