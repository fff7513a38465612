"""Arguments of the tools around the six actions. The six have theirs in planning/request.py."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mask2former_mcp.planning.request import AutomlSettings, DatasetFormat, Platform, Positive

ActionName = Literal["train", "evaluate", "export", "quantize", "inference", "gen_trt_engine"]
Status = Literal["queued", "preparing", "running", "stopping", "succeeded", "failed", "cancelled", "lost"]
Limit = Annotated[int, Field(ge=1, le=100)]


class Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DoctorRequest(Request):
    platform: Platform | None = None


class CheckDatasetRequest(Request):
    dataset: str = Field(description="A folder with images and annotations.")
    dataset_format: DatasetFormat | None = Field(None, description="Left out, detected.")
    role: Literal["train", "eval", "inference"] = Field("train", description="What the data is meant for.")
    compare_with: str | None = Field(None, description="Another folder: category mismatch and leaked images are found.")
    sample: Positive | None = Field(None, description="Look at this many images only.")


class SearchSpecRequest(Request):
    action: ActionName = "train"
    query: str = Field("", description="Words from the key or its help; empty lists the popular keys.")
    limit: Limit = 20


class ListJobsRequest(Request):
    status: Status | None = None
    action: ActionName | None = None
    study_id: str | None = Field(None, max_length=100, description="Only this study and its trials.")
    limit: Limit = 20
    cursor: Annotated[str, Field(max_length=100)] | None = Field(None, description="next_cursor of the page before.")


class JobRequest(Request):
    job_id: str = Field(min_length=1, max_length=100)


class WaitForJobRequest(JobRequest):
    timeout_s: Annotated[float, Field(ge=0, le=50)] = 45


class JobLogsRequest(JobRequest):
    tail: Annotated[int, Field(ge=1, le=1000)] = Field(50, description="Last lines.")
    grep: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="Only lines with this text; a|b: either."
    )
    cursor: Annotated[str, Field(max_length=120)] | None = Field(
        None, description="next_cursor of the call before: lines written since."
    )


class JobMetricsRequest(JobRequest):
    max_points: Annotated[int, Field(ge=1, le=500)] = 50


class ListArtifactsRequest(JobRequest):
    limit: Limit = 50
    cursor: Annotated[str, Field(max_length=19)] | None = None


class ConfirmedRequest(JobRequest):
    confirm: bool = Field(False, description="Needed where the client cannot ask the user itself.")


class ResumeJobRequest(JobRequest):
    num_epochs: Positive | None = Field(None, description="New total; left out, as planned.")
    automl: AutomlSettings | None = None
