"""The `train` block: devices, duration, checkpoints, optimiser and precision."""

from typing import Literal

from mask2former_mcp.spec.field import (
    GpuIds,
    Int,
    Ints,
    Positive,
    Real,
    Section,
    Texts,
    section,
    spec_field,
)
from mask2former_mcp.spec.search import Search, frozen, rate


class Cudnn(Section):
    benchmark: bool = spec_field(False, "Let cuDNN time its algorithms first: faster where image sizes repeat.")
    deterministic: bool = spec_field(
        True, "Use only algorithms that repeat exactly. Slower: it also rules out fused attention."
    )


class Optim(Section):
    type: Literal["AdamW"] = spec_field("AdamW", "Optimiser.")
    monitor_name: Literal["val_loss", "train_loss"] = spec_field(
        "train_loss",
        "Name logged with the scheduler. The best checkpoint is chosen by mIoU (mode instance: AP), not by this.",
    )
    lr: Real = spec_field(
        2e-4,
        "Base learning rate of the decoders. Right for pretrained weights and a batch of about 16; a small network "
        "from scratch wants ten times as much.",
        ge=0.0,
        gt=0.0,
        le=1.0,
        automl=True,
        math_cond="> 0.0",
        search=rate(),
    )
    backbone_multiplier: Real = spec_field(
        0.1,
        "Learning rate of the backbone over the base rate. 0.1 for a pretrained backbone, 1 from scratch, 0 keeps it "
        "as it is.",
        ge=0.0,
        le=1.0,
        automl=True,
        math_cond="> 0.0",
        popular=True,
        search=rate(),
    )
    momentum: Real = spec_field(
        0.9,
        "Has no effect: AdamW is the only optimiser and has no momentum key.",
        ge=0.0,
        le=1.0,
        math_cond="> 0.0",
        popular=True,
        search=frozen("Has no effect with AdamW."),
    )
    weight_decay: Real = spec_field(
        0.05,
        "Decoupled weight decay; 0 turns it off. Normalisation and embedding weights are exempt.",
        ge=0.0,
        le=1.0,
        automl=True,
        math_cond="> 0.0",
        popular=True,
        search=rate(),
    )
    lr_scheduler: Literal["MultiStep", "Warmuppoly"] = spec_field(
        "MultiStep",
        "MultiStep multiplies the rate by gamma at each milestone; Warmuppoly warms up, then falls polynomially to 0 "
        "at the last step. Prefer Warmuppoly for short runs.",
        search=Search(scale="choice", choices=("MultiStep", "Warmuppoly")),
    )
    milestones: Ints = spec_field(
        (88, 96), "MultiStep: epochs at which the rate falls. Those at or after num_epochs never come."
    )
    gamma: Real = spec_field(0.1, "MultiStep: factor on the rate at a milestone.", gt=0.0, math_cond="> 0.0")


class Train(Section):
    num_gpus: Positive = spec_field(
        1, "GPUs per node, one process each; a machine without any runs as many processes on its CPU.", popular=True
    )
    gpu_ids: GpuIds = spec_field(
        (0,), "GPU indices, as many as num_gpus. The server rewrites it to match the lease.", popular=True
    )
    num_nodes: Positive = spec_field(1, "Machines that train together.", popular=True)
    seed: Int = spec_field(1234, "Seed of weights, order and augmentation; -1: another one each time.", ge=-1)
    cudnn: Cudnn = section(Cudnn, "cuDNN on NVIDIA GPUs.")
    num_epochs: Positive = spec_field(10, "Passes over the training split.", popular=True)
    checkpoint_interval: Positive = spec_field(
        1,
        "Checkpoint every so many epochs or steps (see the unit); in epochs at most num_epochs. All are kept, and the "
        "best one by mIoU (mode instance: AP) can only be among them.",
        popular=True,
    )
    checkpoint_interval_unit: Literal["epoch", "step"] = spec_field("epoch", "What checkpoint_interval counts.")
    validation_interval: Positive = spec_field(
        1,
        "Validate every so many epochs, at most num_epochs. Equal to checkpoint_interval, every checkpoint is scored.",
        popular=True,
    )
    resume_training_checkpoint_path: str = spec_field(
        "",
        "Checkpoint (.pth or .tlt) whose run is continued: weights, optimiser, schedule, epoch. Set by resume_job; to "
        "start a new run from old weights use pretrained_model_path.",
    )
    results_dir: str = spec_field("", "Folder of this action's results; empty: train/ below the top results_dir.")
    freeze: Texts = spec_field(
        (), "Modules that do not learn, by name as in the weights, such as backbone or sem_seg_head.pixel_decoder."
    )
    pretrained_model_path: str = spec_field(
        "",
        "Weights of a Mask2Former to start from: a .pth, a detectron2 .pkl or, our engine only, a folder of "
        "transformers with safetensors; backbone weights are then not read.",
    )
    accumulate_grad_batches: Positive = spec_field(
        1,
        "Batches of each GPU that one optimiser step learns from: the step of a batch so many times as large, in the "
        "memory of one. Batch norms measure each batch by itself. Only with our own engine.",
        engine_only=True,
    )
    clip_grad_norm: Real = spec_field(
        0.1,
        "Largest norm that gradients may have; larger ones are scaled down. 0 turns clipping off.",
        ge=0.0,
        math_cond="> 0.0",
        search=rate(enabled=False),
    )
    clip_grad_type: str = spec_field(
        "full", "full: one norm over all parameters together. Our engine does this whatever stands here."
    )
    is_dry_run: bool = spec_field(
        False, "Run a few batches of training and validation, then stop: a check of the set-up."
    )
    optim: Optim = section(Optim, "Optimiser and schedule.")
    precision: Literal["fp16", "fp32", "bf16"] = spec_field(
        "fp32",
        "Arithmetic of a step: fp32; fp16 with loss scaling (GPU only); bf16, on newer GPUs and CPUs, only with our "
        "own engine, not in TAO's images.",
    )
    distributed_strategy: Literal["ddp", "fsdp"] = spec_field(
        "ddp",
        "How several GPUs share the work: ddp copies the network to each, fsdp shards it and forces fp16, not on CPUs.",
    )
    activation_checkpoint: bool = spec_field(
        False, "Recompute activations in the backward pass: less memory, about a third more time."
    )
    use_distributed_sampler: bool = spec_field(
        False, "Let the framework split the data between processes. The engine does so itself on several GPUs."
    )
    iters_per_epoch: Positive | None = spec_field(
        None, "Steps that count as one epoch; null: as many as the training split gives."
    )
