"""Mask2Former (Cheng et al., 2022, https://arxiv.org/abs/2112.01527): backbone, pixel decoder, transformer decoder.

Module names are those of a TAO checkpoint, which are detectron2's; class 0 is "no object".
Nothing in the network casts by hand: it computes in the precision of its weights, or in what autocast chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mask2former_mcp.engine.model import efficientvit
from mask2former_mcp.engine.model.efficientvit import EfficientVit
from mask2former_mcp.engine.model.pixel_decoder import PixelDecoder
from mask2former_mcp.engine.model.swin import PATCH, Swin
from mask2former_mcp.engine.model.transformer_decoder import MaskedTransformerDecoder
from mask2former_mcp.spec import swin_sizes

if TYPE_CHECKING:
    from mask2former_mcp.spec.experiment import Experiment

LEVELS = ["res2", "res3", "res4", "res5"]
MASK_STRIDE = 4
"""Masks are predicted, and compared with their targets, at this stride of the image; sizes are rounded up."""


class Prediction(NamedTuple):
    """What the network says of a batch. L counts predictions: from the bare queries, then after each decoder layer.

    class_logits [L, B, Q, C + 1], class 0 is "no object"; mask_embeddings [L, B, Q, D];
    mask_features [B, D, h, w] at stride 4. A mask logit is the product of an embedding with the features of a pixel:
    they are formed only where asked for, because Q masks in L layers are by far the largest tensors here.

    A named tuple and not a dataclass, so that DDP, autocast wrappers and exporters see the tensors in it.
    """

    class_logits: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor

    def mask_logits(self, layer: int = -1) -> Tensor:
        """Mask logits [B, Q, h, w] of one layer."""
        logits = self.mask_embeddings[layer] @ self.mask_features.flatten(2)
        return torch.unflatten(logits, 2, self.mask_features.shape[2:])


class SemSegHead(nn.Module):
    """Holds the two decoders under the names that checkpoints have for them."""

    def __init__(self, pixel_decoder: PixelDecoder, predictor: MaskedTransformerDecoder) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor


class Mask2Former(nn.Module):
    """The whole network. Image sizes are free; every part pads what it needs."""

    def __init__(
        self, backbone: Swin | EfficientVit, pixel_decoder: PixelDecoder, predictor: MaskedTransformerDecoder
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = SemSegHead(pixel_decoder, predictor)

    @property
    def num_classes(self) -> int:
        """Number of real classes: one less than the class head has rows."""
        return self.sem_seg_head.predictor.class_embed.out_features - 1

    def forward(self, images: Tensor, *, every_layer: bool | None = None) -> Prediction:
        """images [B, 3, H, W], normalised -> Prediction at ceil(H / 4) x ceil(W / 4).

        every_layer: predict after every decoder layer (L = dec_layers), or after the last one only (L = 1).
        None means: while training, or when the loss is to be taken on all layers, True; for inference, False.
        """
        levels, mask_features = self.sem_seg_head.pixel_decoder(self.backbone(images))
        class_logits, mask_embeddings = self.sem_seg_head.predictor(
            levels, mask_features, every_layer=self.training if every_layer is None else every_layer
        )
        return Prediction(class_logits, mask_embeddings, mask_features)


def build(experiment: Experiment) -> Mask2Former:
    """The network that the spec describes, with fresh weights.

    Raises ValueError, with the key and what to set, for values that this network cannot honour.
    """
    recompute = experiment.train.activation_checkpoint
    family = _swin if experiment.model.backbone.type == "swin" else _efficientvit
    backbone = family(experiment, recompute=recompute)
    former = experiment.model.mask_former
    head = experiment.model.sem_seg_head
    _refuse_what_is_not_built(experiment)
    _divisible("model.mask_former.hidden_dim", former.hidden_dim, "model.mask_former.nheads", former.nheads)
    _divisible("model.sem_seg_head.convs_dim", head.convs_dim, "model.mask_former.nheads", former.nheads)
    _divisible("model.sem_seg_head.convs_dim", head.convs_dim, "the 32 groups of its norms", 32)
    for key, channels in (("mask_former.hidden_dim", former.hidden_dim), ("sem_seg_head.convs_dim", head.convs_dim)):
        _divisible(f"model.{key}", channels, "4 (sine and cosine of two axes)", 4)
    pixel_decoder = PixelDecoder(
        in_channels=backbone.num_features,
        conv_dim=head.convs_dim,
        mask_dim=head.mask_dim,
        num_layers=head.transformer_enc_layers,
        num_heads=former.nheads,
        norm=head.norm,
        dropout=former.dropout,
        recompute=recompute,
    )
    predictor = MaskedTransformerDecoder(
        in_channels=head.convs_dim,
        hidden_dim=former.hidden_dim,
        mask_dim=head.mask_dim,
        num_classes=head.num_classes,
        num_queries=former.num_object_queries,
        num_layers=former.dec_layers - 1,  # `dec_layers` counts predictions, and the bare queries make the first
        num_heads=former.nheads,
        dim_feedforward=former.dim_feedforward,
        pre_norm=former.pre_norm,
    )
    return Mask2Former(backbone, pixel_decoder, predictor)


def _efficientvit(experiment: Experiment, *, recompute: bool) -> EfficientVit:
    """The EfficientViT of `name`. It has no position embeddings: pretrain_img_size changes nothing in it."""
    spec = experiment.model.backbone.efficientvit
    # out_indices is not read: the spec's own default leaves out a level that the decoders need, and TAO gives all four.
    _all_levels("model.backbone.efficientvit.out_features", list(spec.out_features))
    return EfficientVit(efficientvit.SIZES[spec.name], recompute=recompute or spec.use_checkpoint)


def _swin(experiment: Experiment, *, recompute: bool) -> Swin:
    """The Swin backbone: `type` sets width, depths and heads; values that are not tiny's, the defaults, win over it."""
    spec = experiment.model.backbone.swin
    embed_dim, depths, num_heads = swin_sizes.meant(spec.type, spec.embed_dim, spec.depths, spec.num_heads)
    for key, values in (("depths", depths), ("num_heads", num_heads)):
        if len(values) != 4:
            raise ValueError(f"model.backbone.swin.{key} = {list(values)}: needs 4 numbers, one for each stage.")
    for stage, heads in enumerate(num_heads):
        _divisible(f"model.backbone.swin.embed_dim x {2**stage}", embed_dim * 2**stage, f"num_heads[{stage}]", heads)
    if spec.patch_size != PATCH:
        raise ValueError(f"model.backbone.swin.patch_size = {spec.patch_size}: only {PATCH} is supported.")
    if list(spec.out_indices) != [0, 1, 2, 3]:
        raise ValueError(
            f"model.backbone.swin.out_indices = {list(spec.out_indices)}: only [0, 1, 2, 3] is supported, decoders "
            "read all four."
        )
    _all_levels("model.backbone.swin.out_features", list(spec.out_features))
    return Swin(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=spec.window_size,
        mlp_ratio=spec.mlp_ratio,
        qkv_bias=spec.qkv_bias,
        qk_scale=spec.qk_scale,
        drop_rate=spec.drop_rate,
        attn_drop_rate=spec.attn_drop_rate,
        drop_path_rate=spec.drop_path_rate,
        pretrain_img_size=spec.pretrain_img_size if spec.ape else None,
        patch_norm=spec.patch_norm,
        recompute=recompute or spec.use_checkpoint,
    )


def _all_levels(key: str, found: list[str]) -> None:
    if found != LEVELS:
        raise ValueError(f"{key} = {found}: only {LEVELS} is supported, decoders read all four.")


def _refuse_what_is_not_built(experiment: Experiment) -> None:
    head = experiment.model.sem_seg_head
    if head.common_stride != MASK_STRIDE:
        raise ValueError(
            f"model.sem_seg_head.common_stride = {head.common_stride}: only {MASK_STRIDE} is supported, "
            "because masks are compared with their targets at that stride."
        )
    if list(head.deformable_transformer_encoder_in_features) != ["res3", "res4", "res5"]:
        raise ValueError(
            "model.sem_seg_head.deformable_transformer_encoder_in_features = "
            f"{list(head.deformable_transformer_encoder_in_features)}: only ['res3', 'res4', 'res5'] is supported."
        )
    if head.norm not in ("GN", ""):
        raise ValueError(f"model.sem_seg_head.norm = {head.norm!r}: must be 'GN' or '' (no norm in the FPN).")


def _divisible(key: str, value: int, by_what: str, divisor: int) -> None:
    if divisor < 1 or value % divisor:
        raise ValueError(f"{key} = {value}: must be divisible by {by_what} = {divisor}.")
