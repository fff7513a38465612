"""The frozen Plan: everything a job will do, decided before anything starts.

Paths that depend on where a job lands are written with a leading placeholder and filled in when the job is prepared:

    {results_dir}   the job's results folder            {job_dir}   the job's own folder
    {home}          the installation's home (caches, other jobs' folders)

so a Plan, and its digest, say the same on every machine and for every job id.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Action = Literal["train", "evaluate", "export", "quantize", "inference", "gen_trt_engine"]
ACTIONS: tuple[Action, ...] = ("train", "evaluate", "export", "quantize", "inference", "gen_trt_engine")


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AutomlDecision(Frozen):
    """How the AutoML policy was decided. `policy` is on or off for this run; `route` is where it led."""

    policy: Literal["auto", "off"]
    route: Literal["automl", "direct"]
    source: Literal["argument", "request", "default", "action"]
    reason: str


class Staging(Frozen):
    """One thing to do in the `preparing` phase so that a spec key points at something readable.

    kind: `fetch` (parts of an s3:// prefix, or named objects of it, to a mirror in the cache),
    `extract` (an archive to a folder in the cache), `split` (a seeded hold-out of one annotation file),
    `download` (published weights to a file in the cache), `label_map` (written from an annotation file's categories),
    `copy` (one image into a folder of its own). `source` is an absolute or placeholder path, a URI, or the
    link of a download; `keys` are the dotted spec keys that receive the result; `target` is the placeholder path those
    keys hold in the Plan's spec.
    """

    kind: Literal["fetch", "extract", "split", "download", "label_map", "copy"]
    source: str
    target: str
    keys: tuple[str, ...] = ()
    options: dict[str, Any] = {}


class Checkpoint(Frozen):
    """The weights a job starts from: which file, its digest, and why this one.

    Of a file in S3, `uri` says which, and `sha256` is empty: it is fetched, and its ETag verified, before the start.
    """

    path: str
    sha256: str
    epoch: int | None = None
    step: int | None = None
    metric: float | None = None
    reason: str
    uri: str | None = None


class Estimate(Frozen):
    """What the job will need. `basis`: a model, or for the seconds what an earlier job with the same network took."""

    gpus: int
    memory_gb: float | None
    steps: int | None
    seconds: float | None
    disk_gb: float | None
    basis: str


class Mount(Frozen):
    source: str
    target: str
    read_only: bool = True


class Plan(Frozen):
    action: Action
    automl: AutomlDecision
    spec_overrides: dict[str, Any]  # dotted key -> value: everything that differs from the bundle's template
    spec: dict[str, Any]  # the merged spec, nested, as it will be written
    command: tuple[str, ...]
    image: str | None
    platform: str
    runtime: Literal["engine", "tao"]
    mounts: tuple[Mount, ...] = ()
    estimate: Estimate
    warnings: tuple[str, ...] = ()
    digest: str

    # What the supervisor needs beyond what a person reviews.
    run_name: str | None = None
    parent_job_id: str | None = None
    results_dir: str | None = None  # an absolute folder the user chose, or s3://; None: the job's own
    checkpoint: Checkpoint | None = None
    staging: tuple[Staging, ...] = ()
    datasets: dict[str, Any] = {}  # role -> {uri, format, hashes of annotation files}
    artifacts: tuple[str, ...] = ()  # globs below {results_dir}; each must match a non-empty file for success
    key_from_environment: bool = False  # the encryption key is read from the environment when the spec is written
    metric: str = "mIoU"  # the monitored task metric
    study: dict[str, Any] | None = None  # a search over trials: its settings (automl/budget.py); None: one plain run
