"""What a caller may ask: one typed request per action. The MCP tools' arguments are made from these models.

`None` means "not said": the value then comes from the parent job, the data, a preset or the bundle's template.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

DatasetFormat = Literal["coco_panoptic", "coco", "ade"]
Mode = Literal["panoptic", "instance", "semantic"]
Platform = Literal["local", "docker"]  # lists only what exists
# Numbers are strict: "5", true or 2.5 where a count is asked is a mistake to report, not to round.
Positive = Annotated[int, Field(ge=1, strict=True)]
Backbone = Literal[
    "swin_tiny",
    "swin_small",
    "swin_base",
    "swin_large",
    "efficientvit_b0",
    "efficientvit_b1",
    "efficientvit_b2",
    "efficientvit_b3",
    "efficientvit_l0",
    "efficientvit_l1",
    "efficientvit_l2",
    "efficientvit_l3",
]


class AutomlSettings(BaseModel):
    """The search's budget and space. What is left out gets a default that the Plan states."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: str | None = None
    max_trials: Positive | None = None
    max_concurrent: Positive | None = None
    max_epochs: Positive | None = None
    reduction_factor: Annotated[int, Field(ge=2, strict=True)] | None = None
    seed: Annotated[int, Field(strict=True)] | None = None
    time_budget_minutes: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] | None = Field(
        None, description="Wall-clock time since the start or the resume."
    )
    search_space: dict[str, Any] | None = Field(
        None, description="Keys to vary instead of the rates; popular: model.mask_former.{class,dice,mask}_weight."
    )
    metric: Literal["mIoU", "PQ", "AP"] | None = None


class ActionRequest(BaseModel):
    """Arguments that all six actions share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overrides: dict[str, Any] | None = Field(None, description="Spec keys to set, dotted or nested.")
    dataset_format: DatasetFormat | None = Field(None, description="Annotation format; left out, detected.")
    platform: Platform | None = Field(None, description="Where the job runs.")
    runtime: Literal["engine", "tao"] | None = Field(None, description="Our engine, or NVIDIA's TAO image.")
    image: str | None = None
    num_gpus: Positive | None = None
    num_nodes: Positive | None = None
    results_dir: str | None = Field(None, description="A new folder or s3:// prefix; left out, the job's own folder.")
    run_name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] | None = Field(
        None, description="Idempotency key: same name and same plan is the same job."
    )
    expect_digest: str | None = Field(None, description="Start only if the Plan's digest is this one.")
    dry_run: StrictBool = Field(False, description="Return the Plan; start nothing.")


class TrainRequest(ActionRequest):
    train_dataset: str | None = Field(None, description="Folder (or s3:// prefix) with images and annotations.")
    eval_dataset: str | None = Field(
        None, description="Validation folder; left out: val/ beside train/, or a 10 % hold-out."
    )
    preset: str | None = Field(
        None, description="Named overrides of the bundle: `mini`, a small network; needed without a GPU."
    )
    mode: Mode | None = Field(
        None,
        description="coco_panoptic: panoptic (default), instance, semantic; coco: instance (default), semantic; "
        "ade: semantic.",
    )
    backbone: Backbone | None = None
    num_classes: Positive | None = Field(None, description="Derived from the data when left out.")
    contiguous_id: StrictBool | None = None
    num_epochs: Positive | None = None
    batch_size: Positive | None = Field(None, description="Images per GPU and step.")
    learning_rate: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)] | None = None
    pretrained_weights: str | None = Field(None, description="Backbone weights; '' trains from scratch.")
    parent_job_id: str | None = Field(None, description="Fine-tune this job's best checkpoint.")
    checkpoint: str | None = Field(
        None,
        description="A .pth or .pkl file, a folder, an s3:// URI, or best, latest, epoch=N[,step=M] of the parent.",
    )
    automl_policy: Literal["auto", "on", "off"] | None = None
    request: str | None = Field(None, description="The user's own words; read for the AutoML policy only.")
    automl: AutomlSettings | None = None


class EvaluateRequest(ActionRequest):
    eval_dataset: str | None = None
    train_dataset: str | None = None
    parent_job_id: str | None = None
    checkpoint: str | None = None
    trt_engine: str | None = None


class ExportRequest(ActionRequest):
    parent_job_id: str | None = None
    checkpoint: str | None = None
    format: Literal["onnx", "transformers"] | None = None
    mode: Mode | None = None
    input_width: Positive | None = None
    input_height: Positive | None = None
    batch_size: Annotated[int, Field(ge=-1, strict=True)] | None = Field(None, description="-1: dynamic.")
    opset_version: Positive | None = None


class QuantizeRequest(ActionRequest):
    parent_job_id: str | None = None
    model_path: str | None = None
    backend: Literal["torchao", "modelopt.pytorch", "modelopt.onnx"] | None = None
    quantize_mode: Literal["weight_only_ptq", "static_ptq"] | None = None
    algorithm: str | None = None
    train_dataset: str | None = None
    eval_dataset: str | None = None


class InferenceRequest(ActionRequest):
    inference_dataset: str | None = Field(None, description="A folder of images; left out: the evaluation images.")
    eval_dataset: str | None = None
    train_dataset: str | None = None
    parent_job_id: str | None = None
    checkpoint: str | None = None
    trt_engine: str | None = None
    mode: Mode | None = None
    threshold: Annotated[float, Field(ge=0, le=1, strict=True, allow_inf_nan=False)] | None = Field(
        None,
        description="Lowest score kept: in overlays and panoptic files a segment's class probability; in instances.json"
        " (0.05 if left out) that times how sure its mask is, which is less.",
    )


class GenTrtEngineRequest(ActionRequest):
    parent_job_id: str | None = None
    onnx_file: str | None = None
    data_type: Literal["FP32", "FP16"] | None = None
    min_batch_size: Positive | None = None
    opt_batch_size: Positive | None = None
    max_batch_size: Positive | None = None
    workspace_size: Positive | None = Field(None, description="MB.")


REQUESTS: dict[str, type[ActionRequest]] = {
    "train": TrainRequest,
    "evaluate": EvaluateRequest,
    "export": ExportRequest,
    "quantize": QuantizeRequest,
    "inference": InferenceRequest,
    "gen_trt_engine": GenTrtEngineRequest,
}
