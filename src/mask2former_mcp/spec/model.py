"""The `model` block: backbone, pixel decoder, transformer decoder, loss weights and how predictions are read out."""

from typing import Annotated, Literal

from pydantic import Field

from mask2former_mcp.spec import swin_sizes
from mask2former_mcp.spec.field import (
    FourPositives,
    Int,
    Ints,
    NotNegative,
    Positive,
    Real,
    Section,
    section,
    spec_field,
)
from mask2former_mcp.spec.search import ARCHITECTURE_NOTE, CLASSES, Search, weight

Level = Literal["res2", "res3", "res4", "res5"]
Levels = Annotated[tuple[Level, ...], Field(strict=False, min_length=1, json_schema_extra={"uniqueItems": True})]


class Swin(Section):
    """`type` chooses dimension, depths and heads; a key here that differs from its own default wins over the type."""

    type: Literal["tiny", "small", "base", "large"] = spec_field(
        "tiny",
        f"Swin size: embed_dim, depths and num_heads are {swin_sizes.described()}.",
        search=Search(scale="choice", choices=("tiny", "small", "base"), note=ARCHITECTURE_NOTE),
    )
    embed_dim: Positive = spec_field(
        swin_sizes.DEFAULT.embed_dim,
        "Channels after the patch embedding; each stage doubles them. A multiple of each stage's heads.",
    )
    depths: FourPositives = spec_field(swin_sizes.DEFAULT.depths, "Blocks per stage.")
    num_heads: FourPositives = spec_field(
        swin_sizes.DEFAULT.num_heads, "Attention heads per stage; each divides its stage's width."
    )
    patch_size: Positive = spec_field(
        4, "Pixels per side of a patch; only 4 is built, since the decoders expect strides 4, 8, 16 and 32."
    )
    window_size: Positive = spec_field(
        7,
        "Patches per side of an attention window. Must match pretrained weights: 7 for the 224-pixel ones, 12 for the "
        "384-pixel ones; the type does not set it.",
    )
    mlp_ratio: Real = spec_field(4.0, "Width of a block's feed-forward part over its own width.", gt=0)
    qkv_bias: bool = spec_field(True, "Add a learned bias to queries, keys and values.")
    qk_scale: Real | None = spec_field(None, "Factor on query-key products; null: 1 / sqrt(head width).")
    drop_rate: Real = spec_field(0.0, "Dropout after projections and in the feed-forward part.", ge=0, le=1)
    attn_drop_rate: Real = spec_field(0.0, "Dropout on attention weights.", ge=0, le=1)
    drop_path_rate: Real = spec_field(
        0.3,
        "Stochastic depth: chance that the deepest block is skipped in training, growing from 0 at the first. Use less "
        "for a small network or a short run.",
        ge=0,
        le=1,
        search=Search(scale="linear", low=0.0, high=0.5, note="Weigh it with the number of epochs."),
    )
    ape: bool = spec_field(False, "Add a learned absolute position embedding, resized from pretrain_img_size.")
    patch_norm: bool = spec_field(True, "Normalise after the patch embedding.")
    out_indices: Ints = spec_field(
        (0, 1, 2, 3), "Stages whose features leave the backbone; the decoders need all four."
    )
    pretrain_img_size: Positive = spec_field(
        384, "Image side, in pixels, that the weights were pretrained with. Read only with ape."
    )
    use_checkpoint: bool = spec_field(
        False, "Recompute activations in the backward pass: less memory, about a third more time."
    )
    out_features: Levels = spec_field(
        ("res2", "res3", "res4", "res5"), "Names of the levels that leave the backbone; the decoders need all four."
    )


class EfficientVit(Section):
    name: Literal["b0", "b1", "b2", "b3", "l0", "l1", "l2", "l3"] = spec_field(
        "l0", "EfficientViT size: b0 (smallest) to b3, l0 to l3 (largest)."
    )
    out_indices: Ints = spec_field((1, 2, 3), "Stages whose features leave the backbone.")
    pretrain_img_size: Positive = spec_field(384, "Image side, in pixels, that the weights were pretrained with.")
    use_checkpoint: bool = spec_field(False, "Recompute activations in the backward pass: less memory, more time.")
    out_features: Levels = spec_field(("res2", "res3", "res4", "res5"), "Names of the levels that leave the backbone.")


class Backbone(Section):
    type: Literal["swin", "efficientvit"] = spec_field(
        "swin", "Backbone family; the block of the same name says which size."
    )
    pretrained_weights: str = spec_field(
        "",
        "Torch file with backbone weights (a mapping, or one under `model` or `state_dict`); empty: from scratch. Not "
        "read when resuming or when train.pretrained_model_path is set. Small data sets depend on it.",
    )
    swin: Swin = section(Swin, "Swin Transformer.")
    efficientvit: EfficientVit = section(EfficientVit, "EfficientViT.")


class SemSegHead(Section):
    """Pixel decoder and class count."""

    common_stride: Int = spec_field(4, "Pixels per side of one cell of the mask features; only 4 is built.", ge=2)
    transformer_enc_layers: Positive = spec_field(
        6,
        "Deformable-attention layers of the pixel decoder; a large share of the time of a step.",
        popular=True,
        search=Search(scale="linear", low=1, high=8, step=1, note=ARCHITECTURE_NOTE),
    )
    convs_dim: Positive = spec_field(
        256, "Channels inside the pixel decoder; a multiple of 32 and of mask_former.nheads.", popular=True
    )
    mask_dim: Positive = spec_field(
        256, "Channels of the mask features and of a query's mask embedding, whose product is the mask.", popular=True
    )
    deformable_transformer_encoder_in_features: Levels = spec_field(
        ("res3", "res4", "res5"), "Levels that the deformable layers attend over; our engine takes these three only."
    )
    num_classes: Positive = spec_field(
        200,
        "Number of classes, without the internal no-object class. With contiguous_id the number of categories, "
        "otherwise at least the largest category id. Fixed at training; the server derives it from the annotations.",
        search=CLASSES,
    )
    norm: str = spec_field(
        "GN", "Normalisation of the pixel decoder's convolutions: GN (group norm, 32 groups), or empty for none."
    )


class MaskFormer(Section):
    """Transformer decoder and loss weights."""

    dropout: Real = spec_field(
        0.0, "Dropout in the pixel decoder's layers; the transformer decoder has none.", ge=0.0, le=1.0
    )
    nheads: Positive = spec_field(8, "Attention heads; divides hidden_dim.", popular=True)
    num_object_queries: Positive = spec_field(
        100,
        "Segments that can be found per image, at most. Above what your busiest image holds; more only costs time.",
        automl=True,
        popular=True,
        search=Search(scale="log", factor=2.0, step=1, note=ARCHITECTURE_NOTE),
    )
    hidden_dim: Int = spec_field(
        256,
        "Width of the transformer decoder; a multiple of nheads.",
        ge=64,
        le=1024,
        multiple_of=8,
        automl=True,
        math_cond="/ 8",
        popular=True,
        search=Search(scale="choice", choices=(128, 192, 256, 320, 384), note=ARCHITECTURE_NOTE),
    )
    dim_feedforward: Positive = spec_field(
        2048, "Feed-forward width of the transformer decoder. The pixel decoder's is always 1024."
    )
    dec_layers: Int = spec_field(
        10,
        "Predictions per image while training: the bare queries, then one after each layer. N predictions are N - 1 "
        "layers, so the default builds nine.",
        ge=1,
        le=50,
        automl=True,
        search=Search(scale="linear", low=4, high=10, step=1, note=ARCHITECTURE_NOTE),
    )
    pre_norm: bool = spec_field(False, "Normalise before each layer instead of after.")
    class_weight: Real = spec_field(
        2.0, "Weight of classification, in the loss and in matching.", ge=0.0, popular=True, search=weight()
    )
    dice_weight: Real = spec_field(
        5.0, "Weight of the dice loss on masks, in the loss and in matching.", ge=0.0, popular=True, search=weight()
    )
    mask_weight: Real = spec_field(
        5.0,
        "Weight of the focal loss on mask pixels, in the loss and in matching.",
        ge=0.0,
        popular=True,
        search=weight(),
    )
    train_num_points: Positive = spec_field(12544, "Has no effect: masks are compared at every pixel, at stride 4.")
    oversample_ratio: Real = spec_field(3.0, "Has no effect: no points are sampled.", ge=0)
    importance_sample_ratio: Real = spec_field(0.75, "Has no effect: no points are sampled.", ge=0, popular=True)
    deep_supervision: bool = spec_field(True, "Apply the loss to every layer's prediction, not to the last alone.")
    no_object_weight: Real = spec_field(
        0.1,
        "Weight of the no-object class in classification; small, because most queries match nothing.",
        ge=0,
        search=weight("Lower finds more, higher invents less."),
    )


class Model(Section):
    export: bool = spec_field(False, "Internal: the export action sets it. Leave it off.")
    backbone: Backbone = section(Backbone, "Backbone.")
    sem_seg_head: SemSegHead = section(SemSegHead, "Pixel decoder and class count.")
    mask_former: MaskFormer = section(MaskFormer, "Transformer decoder and loss weights.")
    mode: Literal["panoptic", "instance", "semantic"] = spec_field(
        "panoptic",
        "What predictions become: panoptic (every pixel in one segment), instance (scored masks, may overlap), "
        "semantic (a class per pixel). One set of weights; coco_panoptic data serves all three, coco instance and "
        "semantic, ade semantic.",
    )
    object_mask_threshold: Real = spec_field(
        0.4, "Lowest class score for a query to become a segment. Higher: fewer, surer segments.", ge=0, le=1
    )
    overlap_threshold: Real = spec_field(
        0.5, "Panoptic: a segment is dropped when less than this share of its mask stays visible.", ge=0, le=1
    )
    test_topk_per_image: NotNegative = spec_field(100, "Instance: number of best-scored masks kept per image.")
