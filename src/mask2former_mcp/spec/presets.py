"""Presets: named sets of overrides, committed with the spec and written to skill_info.yaml.

A preset fills only what the caller, the data and the parent job leave open.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_MINI: dict[str, Any] = {
    # A Swin of a tenth of the smallest published one, and decoders to match: 3.6 million weights.
    "model.backbone.type": "swin",
    "model.backbone.swin.type": "tiny",
    "model.backbone.swin.embed_dim": 48,
    "model.backbone.swin.depths": [1, 1, 2, 1],
    "model.backbone.swin.num_heads": [3, 6, 12, 24],
    "model.backbone.swin.window_size": 7,
    "model.backbone.swin.drop_path_rate": 0.0,
    "model.sem_seg_head.convs_dim": 64,
    "model.sem_seg_head.mask_dim": 64,
    "model.sem_seg_head.transformer_enc_layers": 1,
    "model.mask_former.hidden_dim": 64,
    "model.mask_former.nheads": 8,
    "model.mask_former.dim_feedforward": 256,
    "model.mask_former.num_object_queries": 20,
    "model.mask_former.dec_layers": 4,
    # Small images: a step takes a fraction of a second on two CPU cores.
    "dataset.augmentation.train_min_size": [160, 192, 224],
    "dataset.augmentation.train_max_size": 512,
    "dataset.augmentation.train_crop_size": [160, 160],
    "dataset.augmentation.test_min_size": 192,
    "dataset.augmentation.test_max_size": 512,
    "dataset.train.batch_size": 8,
    # From scratch: one high rate for all of it, warmed up, falling to zero.
    "train.num_epochs": 20,
    "train.optim.lr": 2e-3,
    "train.optim.backbone_multiplier": 1.0,
    "train.optim.lr_scheduler": "Warmuppoly",
    "train.precision": "fp32",
}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType({"mini": MappingProxyType(_MINI)})
