"""A folder that transformers' `save_pretrained` wrote, to start from: which network it holds, and its digest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former_mcp import lineage
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.lineage import Chosen
from mask2former_mcp.planning.merge import show
from mask2former_mcp.spec import dotted

_CONFIG, _INDEX, _WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
_LIMIT = 10_000_000  # bytes of a config or an index; real ones have some thousands

# Spec key -> the same in config.json.
_KEYS: Mapping[str, str] = {
    "model.backbone.swin.embed_dim": "backbone_config.embed_dim",
    "model.backbone.swin.depths": "backbone_config.depths",
    "model.backbone.swin.num_heads": "backbone_config.num_heads",
    "model.backbone.swin.window_size": "backbone_config.window_size",
    "model.sem_seg_head.convs_dim": "feature_size",
    "model.sem_seg_head.mask_dim": "mask_feature_size",
    "model.sem_seg_head.transformer_enc_layers": "encoder_layers",
    "model.mask_former.hidden_dim": "hidden_dim",
    "model.mask_former.nheads": "num_attention_heads",
    "model.mask_former.dim_feedforward": "dim_feedforward",
    "model.mask_former.dec_layers": "decoder_layers",
    "model.mask_former.num_object_queries": "num_queries",
    "model.mask_former.pre_norm": "pre_norm",
}


def choose(argument: str, folder: Path) -> tuple[Chosen, dict[str, Any]]:
    """The folder, and the spec of its network as far as config.json tells it. InvalidRequest where it cannot be read
    as a Mask2Former with a Swin backbone."""
    if not folder.is_absolute():
        raise InvalidRequest(f"{argument}={str(folder)!r} is not an absolute path", fix="Pass its absolute path.")
    config = _read(argument, folder, _CONFIG)
    spec = _network(argument, folder, config)
    names = [_CONFIG, *_weight_files(argument, folder)]
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name}:{lineage.sha256(folder / name)}\n".encode())
    return Chosen(folder.resolve(), total.hexdigest(), f"the folder named by {argument}"), spec


def _network(argument: str, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    backbone = config.get("backbone_config")
    kinds = (config.get("model_type"), backbone.get("model_type") if isinstance(backbone, dict) else None)
    if kinds != ("mask2former", "swin"):
        raise InvalidRequest(
            f"{argument}={str(folder)!r} holds {show(kinds[0])} with the backbone {show(kinds[1])}: the engine reads "
            "transformers' Mask2Former with a Swin backbone",
            fix="Pass such a folder, a checkpoint (.pth) or a detectron2 file (.pkl).",
        )
    known: dict[str, Any] = {"model.backbone.type": "swin"}
    for key, theirs in _KEYS.items():
        try:
            known[key] = dotted.get(config, theirs)
        except KeyError:
            continue  # older transformers left out what equals its default, which is the spec's too
    return dotted.unflatten(known)


def _weight_files(argument: str, folder: Path) -> list[str]:
    """Names of the safetensors files; pickled weights beside them are never looked at."""
    names = [_WEIGHTS]
    if (folder / _INDEX).is_file():
        table = _read(argument, folder, _INDEX).get("weight_map")
        names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    for name in names or [_WEIGHTS]:
        if "/" in name or not (folder / name).is_file():
            raise InvalidRequest(
                f"{argument}={str(folder)!r} has no {name}",
                fix="Pass a folder that transformers' save_pretrained wrote, with safetensors weights.",
            )
    return names


def _read(argument: str, folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        if path.stat().st_size > _LIMIT:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise InvalidRequest(
            f"{argument}={str(folder)!r} is a folder, but its {name} cannot be read: {cause}",
            fix="Pass a folder that transformers' save_pretrained wrote, or a .pth or .pkl file.",
        ) from cause
    if not isinstance(content, dict):
        raise InvalidRequest(f"{path} holds no JSON object", fix="Pass a folder that transformers wrote.")
    return content
