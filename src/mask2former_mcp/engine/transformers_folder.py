"""A folder that transformers' Mask2FormerForUniversalSegmentation reads and writes; without transformers."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mask2former_mcp.engine.classes import Classes
from mask2former_mcp.engine.model import weights
from mask2former_mcp.engine.model.network import Mask2Former
from mask2former_mcp.engine.model.pixel_decoder import FEEDFORWARD
from mask2former_mcp.engine.model.swin import Swin
from mask2former_mcp.spec.experiment import Experiment

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DIVISOR = 32  # its image processor resizes to multiples of it, unless told otherwise


def read(folder: Path) -> dict[str, Tensor]:
    """Name -> tensor of the whole folder, in one file or in shards.

    Raises FileNotFoundError, or ValueError naming the file that cannot be read; pickled weights are not looked at.
    """
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{folder / INDEX} is no index of safetensors files: {error}") from error
    else:
        names = [SINGLE]
    state: dict[str, Tensor] = {}
    for name in names:
        file = folder / str(name)
        if file.parent != folder or not file.is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: expected a folder that transformers wrote.")
        try:
            state.update(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read as safetensors: {error}") from error
    return state


def write(folder: Path, model: Mask2Former, classes: Classes | None, spec: Experiment) -> None:
    """config.json, model.safetensors and preprocessor_config.json. Raises ValueError for what transformers cannot be.

    classes: names for id2label, where they are known.
    """
    backbone = model.backbone
    if not isinstance(backbone, Swin):
        raise ValueError("export.format=transformers: it has no EfficientViT. Use export.format=onnx.")  # noqa: TRY004 - a spec's content
    described = config(backbone, classes, spec)
    state = weights.to_transformers_file(model.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(spec), indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / SINGLE, {"format": "pt"})


def config(backbone: Swin, classes: Classes | None, spec: Experiment) -> dict[str, Any]:
    """config.json. Raises ValueError with the key that transformers has no counterpart for."""
    swin, head, former = spec.model.backbone.swin, spec.model.sem_seg_head, spec.model.mask_former
    for key, found, needed in (
        ("backbone.swin.ape", swin.ape, False),
        ("backbone.swin.patch_norm", swin.patch_norm, True),
        ("backbone.swin.qk_scale", swin.qk_scale, None),
        ("sem_seg_head.norm", head.norm, "GN"),
    ):
        if found != needed:
            raise ValueError(
                f"model.{key} = {found!r}: transformers' Mask2Former has only {needed!r}. Use format=onnx."
            )
    names = {str(i): classes[i + 1].name if classes else f"LABEL_{i}" for i in range(head.num_classes)}
    swin_blocks: list[Any] = [stage.blocks for stage in backbone.layers]
    levels = [f"stage{i}" for i in range(1, 5)]
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": backbone.num_features[0],
            "depths": [len(stage) for stage in swin_blocks],
            "num_heads": [stage[0].attn.num_heads for stage in swin_blocks],
            "window_size": swin.window_size,
            "mlp_ratio": swin.mlp_ratio,
            "qkv_bias": swin.qkv_bias,
            "drop_path_rate": swin.drop_path_rate,
            "image_size": swin.pretrain_img_size,
            "out_features": levels,
        },
        "feature_size": head.convs_dim,
        "mask_feature_size": head.mask_dim,
        "encoder_layers": head.transformer_enc_layers,
        "encoder_feedforward_dim": FEEDFORWARD,
        "hidden_dim": former.hidden_dim,
        "num_attention_heads": former.nheads,
        "dim_feedforward": former.dim_feedforward,
        "decoder_layers": former.dec_layers,
        "num_queries": former.num_object_queries,
        "pre_norm": former.pre_norm,
        "dropout": former.dropout,
        "class_weight": former.class_weight,
        "mask_weight": former.mask_weight,
        "dice_weight": former.dice_weight,
        "no_object_weight": former.no_object_weight,
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
    }


def preprocessor(spec: Experiment) -> dict[str, Any]:
    """preprocessor_config.json: our evaluation's resizing and normalisation, on pixels scaled to 0..1."""
    sizes = spec.dataset.augmentation
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": sizes.test_min_size, "longest_edge": sizes.test_max_size},
        "size_divisor": DIVISOR,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.dataset.pixel_mean),
        "image_std": list(spec.dataset.pixel_std),
        "ignore_index": 255,
        "do_reduce_labels": False,
        "num_labels": spec.model.sem_seg_head.num_classes,
    }
