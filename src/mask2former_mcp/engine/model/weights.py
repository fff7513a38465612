"""What the names in other files mean: transformers' and detectron2's Mask2Former and published backbones.

Ours are TAO's, which are detectron2's. Between transformers and us only two things differ beyond names: transformers
keeps q, k and v apart in most attention layers, and has "no object" as the last class where we have it first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

CLASS_HEAD = "sem_seg_head.predictor.class_embed"
TASK_SPECIFIC = (CLASS_HEAD, "sem_seg_head.predictor.query_feat", "sem_seg_head.predictor.query_embed")
"""Weights that another task may size differently: fine-tuning leaves them fresh then."""
RECOMPUTED = "relative_position_index"
"""A buffer that follows from the window size; TAO's files hold it."""

_SWIN = "model.pixel_level_module.encoder.swin."
_NORMS = "model.pixel_level_module.encoder.hidden_states_norms."
_PIXELS = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."

# Ours and transformers', up to the final `.weight` or `.bias`; `*` is a number.
_MODULES = [
    ("backbone.patch_embed.proj", _SWIN + "embeddings.patch_embeddings.projection"),
    ("backbone.patch_embed.norm", _SWIN + "embeddings.norm"),
    ("backbone.layers.*.blocks.*.norm1", _SWIN + "encoder.layers.*.blocks.*.layernorm_before"),
    ("backbone.layers.*.blocks.*.norm2", _SWIN + "encoder.layers.*.blocks.*.layernorm_after"),
    ("backbone.layers.*.blocks.*.attn.proj", _SWIN + "encoder.layers.*.blocks.*.attention.o_proj"),
    ("backbone.layers.*.blocks.*.mlp.fc1", _SWIN + "encoder.layers.*.blocks.*.mlp.fc1"),
    ("backbone.layers.*.blocks.*.mlp.fc2", _SWIN + "encoder.layers.*.blocks.*.mlp.fc2"),
    ("backbone.layers.*.downsample.reduction", _SWIN + "encoder.layers.*.downsample.reduction"),
    ("backbone.layers.*.downsample.norm", _SWIN + "encoder.layers.*.downsample.norm"),
    *((f"backbone.norm{i}", f"{_NORMS}stage{i + 1}") for i in range(4)),
    ("sem_seg_head.pixel_decoder.input_proj.*.*", _PIXELS + "input_projections.*.*"),
    ("sem_seg_head.pixel_decoder.adapter_1", _PIXELS + "adapter_1.0"),
    ("sem_seg_head.pixel_decoder.adapter_1.norm", _PIXELS + "adapter_1.1"),
    ("sem_seg_head.pixel_decoder.layer_1", _PIXELS + "layer_1.0"),
    ("sem_seg_head.pixel_decoder.layer_1.norm", _PIXELS + "layer_1.1"),
    ("sem_seg_head.pixel_decoder.mask_features", _PIXELS + "mask_projection"),
    *(
        (f"sem_seg_head.pixel_decoder.transformer.encoder.layers.*.{ours}", f"{_PIXELS}encoder.layers.*.{theirs}")
        for ours, theirs in (
            ("self_attn.sampling_offsets", "self_attn.sampling_offsets"),
            ("self_attn.attention_weights", "self_attn.attention_weights"),
            ("self_attn.value_proj", "self_attn.value_proj"),
            ("self_attn.output_proj", "self_attn.output_proj"),
            ("norm1", "self_attn_layer_norm"),
            ("linear1", "fc1"),
            ("linear2", "fc2"),
            ("norm2", "final_layer_norm"),
        )
    ),
    *(
        (f"sem_seg_head.predictor.transformer_{ours}", f"{_QUERIES}decoder.layers.*.{theirs}")
        for ours, theirs in (
            ("self_attention_layers.*.self_attn.out_proj", "self_attn.out_proj"),
            ("self_attention_layers.*.norm", "self_attn_layer_norm"),
            ("cross_attention_layers.*.multihead_attn.out_proj", "cross_attn.out_proj"),
            ("cross_attention_layers.*.norm", "cross_attn_layer_norm"),
            ("ffn_layers.*.linear1", "fc1"),
            ("ffn_layers.*.linear2", "fc2"),
            ("ffn_layers.*.norm", "final_layer_norm"),
        )
    ),
    ("sem_seg_head.predictor.decoder_norm", _QUERIES + "decoder.layernorm"),
    ("sem_seg_head.predictor.mask_embed.layers.*", _QUERIES + "decoder.mask_predictor.mask_embedder.*.0"),
    ("sem_seg_head.predictor.query_feat", _QUERIES + "queries_features"),
    ("sem_seg_head.predictor.query_embed", _QUERIES + "queries_embedder"),
    ("sem_seg_head.predictor.level_embed", _QUERIES + "level_embed"),
    ("sem_seg_head.predictor.input_proj.*", _QUERIES + "input_projections.*"),
    (CLASS_HEAD, "class_predictor"),
]

_CROSS = (
    "sem_seg_head.predictor.transformer_cross_attention_layers.*.multihead_attn.in_proj",
    _QUERIES + "decoder.layers.*.cross_attn.in_proj",
)
_NAMES = [
    *((ours + end, theirs + end) for ours, theirs in _MODULES for end in (".weight", ".bias")),
    *((_CROSS[0] + end, _CROSS[1] + end) for end in ("_weight", "_bias")),
    ("sem_seg_head.pixel_decoder.transformer.level_embed", _PIXELS + "level_embed"),
    (
        "backbone.layers.*.blocks.*.attn.relative_position_bias_table",
        _SWIN + "encoder.layers.*.blocks.*.attention.relative_position_bias.relative_position_bias_table",
    ),
]

# One tensor of ours is q, k and v of transformers, one below the other; `?` is one of the three.
_JOINED = [
    (
        f"backbone.layers.*.blocks.*.attn.qkv.{leaf}",
        f"{_SWIN}encoder.layers.*.blocks.*.attention.?_proj.{leaf}",
    )
    for leaf in ("weight", "bias")
] + [
    (
        f"sem_seg_head.predictor.transformer_self_attention_layers.*.self_attn.in_proj_{leaf}",
        f"{_QUERIES}decoder.layers.*.self_attn.?_proj.{leaf}",
    )
    for leaf in ("weight", "bias")
]

_ONLY_TRANSFORMERS = (_SWIN + "layernorm.", "criterion.")  # an unused norm and a constant

# In memory, transformers calls Swin's modules otherwise than in the files it writes: (in memory, in a file).
_FILED = [
    ("attention.relative_position_bias.relative_position_bias_table", "attention.self.relative_position_bias_table"),
    ("attention.q_proj.", "attention.self.query."),
    ("attention.k_proj.", "attention.self.key."),
    ("attention.v_proj.", "attention.self.value."),
    ("attention.o_proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
]
_FILED_SWIN = "model.pixel_level_module.encoder."


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the names of transformers' Mask2FormerForUniversalSegmentation, "no object" last."""
    result = {}
    for name, value in state.items():
        if name.endswith(RECOMPUTED):
            continue
        if joined := _rename(name, _JOINED):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                result[joined.replace("?", letter)] = part
            continue
        renamed = _rename(name, _NAMES)
        if renamed is None:
            raise ValueError(f"{name} has no counterpart in transformers' Mask2Former.")
        result[renamed] = value.roll(-1, 0) if name.startswith(CLASS_HEAD) else value
    return result


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of transformers' Mask2FormerForUniversalSegmentation under our names, "no object" first."""
    result = {}
    theirs_to_ours = [(theirs, ours) for ours, theirs in _NAMES]
    joined = [(theirs.replace("?", "q"), ours) for ours, theirs in _JOINED]
    for name, value in state.items():
        if name.startswith(_ONLY_TRANSFORMERS) or re.search(r"\.[kv]_proj\.", name):
            continue
        if whole := _rename(name, joined):
            result[whole] = torch.cat([state[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
            continue
        renamed = _rename(name, theirs_to_ours)
        if renamed is None:
            raise ValueError(f"{name} of transformers' Mask2Former has no counterpart here.")
        result[renamed] = value.roll(1, 0) if renamed.startswith(CLASS_HEAD) else value
    return result


def to_transformers_file(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the names that transformers writes to a folder, and that every version of it reads."""
    result = {}
    for name, value in to_transformers(state).items():
        if name.startswith(_SWIN):
            name = _FILED_SWIN + name.removeprefix(_SWIN)
            for memory, file in _FILED:
                name = name.replace(memory, file)
        result[name] = value
    # The reference has a norm that it never uses: with it, nothing is missing when the folder is loaded.
    last = state["backbone.norm3.weight"]
    unused = {"weight": torch.ones_like(last), "bias": torch.zeros_like(last)}
    return result | {f"{_SWIN}layernorm.{leaf}": value for leaf, value in unused.items()}


def from_transformers_file(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `from_transformers` gives, from the names in a folder: those of either kind."""
    result = {}
    for name, value in state.items():
        if name.startswith(_FILED_SWIN) and not name.startswith((_SWIN, _NORMS)):
            name = _SWIN + name.removeprefix(_FILED_SWIN)
            for memory, file in _FILED:
                name = name.replace(file, memory)
        if not name.endswith(RECOMPUTED):
            result[name] = value
    return from_transformers(result)


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detectron2 Mask2Former under our names, "no object" first; the constants of its loss are left out."""
    result = {}
    for name, value in state.items():
        if name.startswith(("criterion.", "pixel_mean", "pixel_std")):
            continue
        name = name.replace(".static_query.", ".query_feat.")  # its name in the first published files
        result[name] = value.roll(1, 0) if name.startswith(CLASS_HEAD) else value
    return result


def from_efficientvit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published EfficientViT file under our backbone's names, without its classifier."""
    state = without_prefix(without_prefix(state, "model."), "backbone.")
    return {f"model.{name}": value for name, value in state.items() if name.startswith(("input_stem.", "stages."))}


def from_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published Swin file under our backbone's names, without its classifier and what is recomputed."""
    state = without_prefix(without_prefix(state, "model."), "backbone.")
    left_out = ("head.", "norm.", "fc.", "sem_seg_head.")
    return {
        name: value
        for name, value in state.items()
        if not name.startswith(left_out) and not name.endswith((RECOMPUTED, "attn_mask"))
    }


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The state dict with a prefix taken off, where any name has it; names without it are dropped then."""
    if not any(name.startswith(prefix) for name in state):
        return dict(state)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def explains_most(name: str) -> tuple[int, str]:
    """Sort key: names whose shape says which spec value is wrong come first."""
    telling = (CLASS_HEAD, "query_feat", "patch_embed.proj.weight", "relative_position_bias_table")
    return next((i for i, part in enumerate(telling) if part in name), len(telling)), name


def explain(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Why a shape differs, and the spec value that makes it fit."""
    if name.startswith(CLASS_HEAD) and found[0] != expected[0]:
        return (
            f"it was trained with {found[0] - 1} classes, model.sem_seg_head.num_classes is {expected[0] - 1}. "
            f"Set model.sem_seg_head.num_classes={found[0] - 1}."
        )
    of_queries = "query_feat" in name or "query_embed" in name
    if of_queries and found[0] != expected[0]:
        return f"it has {found[0]} queries, not {expected[0]}. Set model.mask_former.num_object_queries={found[0]}."
    if of_queries or name.startswith(CLASS_HEAD):
        return f"its queries are {found[-1]} wide, not {expected[-1]}. Set model.mask_former.hidden_dim={found[-1]}."
    if name == "backbone.patch_embed.proj.weight":
        fix = f"Set model.backbone.swin.embed_dim={found[0]}, or the type that has it."
        return f"its backbone is {found[0]} wide, not {expected[0]}. {fix}"
    if "relative_position_bias_table" in name and found[0] != expected[0]:
        window = (math.isqrt(found[0]) + 1) // 2
        return f"its attention windows are {window} wide. Set model.backbone.swin.window_size={window}."
    return f"{name} has shape {found}, the network {expected}. Use the architecture keys that the file was made with."


def _rename(name: str, table: list[tuple[str, str]]) -> str | None:
    """The other name of a tensor, numbers carried over; None if the table does not hold it."""
    for pattern, other in table:
        if found := re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), name):
            numbers = iter(found.groups())
            return re.sub(r"\*", lambda _: next(numbers), other)  # noqa: B023 - used before the loop goes on
    return None
