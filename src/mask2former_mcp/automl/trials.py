"""A trial as a job: its Plan, made of the study's; and the evaluate jobs before and after.

A child's run name says whose it is (`<study>-trial-<n>`), so submitting it twice answers the same job: the fence
between the numbers in Optuna's storage and the jobs in the store.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mask2former_mcp.automl import budget
from mask2former_mcp.automl.budget import StudySettings
from mask2former_mcp.errors import Mask2FormerError
from mask2former_mcp.jobs.job import Job
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.planning.digest import digest
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import EvaluateRequest, Platform
from mask2former_mcp.planning.rules import Situation
from mask2former_mcp.planning.validate import check_schema
from mask2former_mcp.spec import dotted
from mask2former_mcp.staging import holdout

START_KEY = "train.pretrained_model_path"
BACKBONE_KEY = "model.backbone.pretrained_weights"
_BUDGET_KEYS = (
    "train.num_epochs", "train.validation_interval", "train.checkpoint_interval", "train.checkpoint_interval_unit",
    "train.resume_training_checkpoint_path", "train.results_dir", "train.gpu_ids", "results_dir", "encryption_key",
)  # fmt: skip


def trial_name(study_id: str, number: int) -> str:
    return f"{study_id}-trial-{number}"


def baseline_name(study_id: str) -> str:
    return f"{study_id}-baseline"


def final_name(study_id: str, number: int, epoch: int) -> str:
    return f"{study_id}-final-{number}-{epoch}"


def trial_plan(
    study: Job, settings: StudySettings, number: int, values: Mapping[str, Any], planner: Planner
) -> tuple[Plan, list[str]]:
    """The Plan of one trial, and what was adjusted in it. InvalidRequest when the values break a rule of the model."""
    plan = study.plan
    values, adjusted = budget.capped_batch(values, budget.batch_cap(training_images(plan), plan.spec["train"]))
    changes = {key: value for key, value in values.items() if number > 0}
    if plan.spec["train"]["num_epochs"] != settings.epochs:
        changes["train.num_epochs"] = settings.epochs
    changes |= budget.clamped_intervals(plan.spec["train"], settings.first_rung)
    spec = _in_study_folder(study, plan.spec)
    for key, value in changes.items():
        spec = dotted.with_value(spec, key, value)
    if changes:
        _check(spec, changes, plan, planner)
    overrides = {**_in_study_folder(study, plan.spec_overrides), **changes}
    reason = f"trial {number} of study {study.id}"
    member = plan.model_copy(
        update={
            "automl": plan.automl.model_copy(update={"route": "direct", "reason": reason}),
            "spec": spec,
            "spec_overrides": overrides,
            "warnings": (),
            "staging": (),  # done once, by the study
            "run_name": trial_name(study.id, number),
            "results_dir": f"{plan.results_dir}/trial-{number}" if plan.results_dir else None,
            "study": None,
        }
    )
    return _with_digest(member, planner), adjusted


def evaluate_plan(study: Job, planner: Planner, *, name: str, parent_job_id: str | None, checkpoint: str) -> Plan:
    """Evaluate a checkpoint on exactly the data that the trials validate on. Mask2FormerError says why it cannot be.

    Without a parent nothing else may say what network the weights are of, but the spec that training starts them with.
    """
    plan = study.plan
    uri = (plan.datasets.get("eval") or {}).get("uri")
    request = EvaluateRequest(
        parent_job_id=parent_job_id,
        checkpoint=checkpoint,
        eval_dataset=uri,
        dataset_format=(plan.datasets.get("eval") or {}).get("format"),
        num_gpus=None,
        run_name=name,
        platform=cast(Platform, plan.platform),
        runtime=plan.runtime,
        # Named by the caller, then, from the operator's list; otherwise the action's own.
        image=plan.image if plan.image in planner.settings.images else None,
    )
    found = planner.plan(request)
    spec = {**found.spec, "dataset": _in_study_folder(study, plan.spec["dataset"])}
    if parent_job_id is None:
        spec["model"] = plan.spec["model"]
    return _with_digest(found.model_copy(update={"spec": spec, "staging": (), "metric": plan.metric}), planner)


def start_weights(plan: Plan) -> tuple[str | None, str]:
    """(the file or choice that a baseline evaluates, or None; why there is none).

    A pretrained backbone alone has none: its head is random, so the number would tell the seed, not the weights.
    """
    if plan.checkpoint is not None and dotted.flatten(plan.spec).get(START_KEY):
        return plan.checkpoint.uri or plan.checkpoint.path, ""
    if dotted.flatten(plan.spec).get(BACKBONE_KEY):
        return None, "only the backbone starts with weights: its head is untrained, and the score would be noise"
    return None, "from scratch: there is nothing to evaluate before training"


def training_images(plan: Plan) -> int | None:
    """Images that a trial trains on; None when nobody counted them."""
    known = (plan.datasets.get("train") or {}).get("images")
    split = (plan.datasets.get("eval") or {}).get("holdout")
    if known and split:
        return int(holdout.sizes(int(known), float(split["fraction"]))[0])
    return int(known) if known else None


def handed_over(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The winner's spec without what belongs to the search (epochs of a rung, folders, devices)."""
    kept = {key: value for key, value in dotted.flatten(spec).items() if key not in _BUDGET_KEYS}
    return dict(dotted.unflatten(kept))


def children(jobs: Sequence[Job], study_id: str) -> dict[str, Job]:
    """Run name -> job, of a study's members."""
    return {job.run_name: job for job in jobs if job.study_id == study_id and job.id != study_id and job.run_name}


def why(error: Mask2FormerError) -> str:
    return f"{error.message}. {error.fix}"


def _check(spec: Mapping[str, Any], changes: Mapping[str, Any], plan: Plan, planner: Planner) -> None:
    """Schema and cross-field rules, as for any plan."""
    check_schema(spec, planner.bundle.schema("train"), planner.rules.remarks)
    images = training_images(plan)
    planner.rules.check(
        Situation(
            action="train", runtime=plan.runtime, platform=plan.platform, machine=planner.machine, tensorrt=False,
            spec=spec, said=changes, format=(plan.datasets.get("train") or {}).get("format"),
            images={"train": images} if images else {},
        )
    )  # fmt: skip


def _in_study_folder(study: Job, value: Any) -> Any:
    """Files that the study staged in its own folder, as its members name them."""
    if isinstance(value, str):
        return value.replace("{job_dir}", f"{{home}}/jobs/{study.id}")
    if isinstance(value, Mapping):
        return {key: _in_study_folder(study, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_in_study_folder(study, inner) for inner in value]
    return value


def _with_digest(plan: Plan, planner: Planner) -> Plan:
    home: Path = planner.settings.home
    found = digest(
        action=plan.action, spec=plan.spec, bundle_digest=planner.bundle.digest, datasets=plan.datasets,
        platform=plan.platform, runtime=plan.runtime, image=plan.image, home=home, stand_ins={},
    )  # fmt: skip
    return plan.model_copy(update={"digest": found})
