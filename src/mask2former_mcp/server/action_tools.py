"""The six actions: plan, and unless it is a dry run, submit. Everything is decided by the planner."""

from typing import Any

import anyio.to_thread
from mcp.server.mcpserver import Context

from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.folders import Folders
from mask2former_mcp.jobs.job import Job
from mask2former_mcp.jobs.plan import Estimate, Plan
from mask2former_mcp.planning import judging
from mask2former_mcp.planning.request import REQUESTS, ActionRequest
from mask2former_mcp.server.answers import answer
from mask2former_mcp.server.job_facts import SUMMARY_SCHEMA, duration, headline, summary
from mask2former_mcp.server.schema import Schema
from mask2former_mcp.server.services import Services
from mask2former_mcp.server.start_check import lacking, refuse_hopeless
from mask2former_mcp.server.tool import Answer, Behaviour, RequestTool, request_tool

# Either a job summary or, with dry_run, a Plan. Of the Plan only what a caller needs to go on is described here: its
# full schema, six times over, would be a third of the whole list.
_OUTPUT: Schema = {
    "type": "object",
    "description": "A job summary; with dry_run the Plan.",
    "properties": {
        **{name: SUMMARY_SCHEMA["properties"][name] for name in ("job_id", "status", "next")},
        "spec": {"type": "object"},
        "warnings": {"type": "array"},
        "digest": {"type": "string"},
    },
}

_DESCRIPTIONS = {
    "train": "Train Mask2Former on a folder of images and annotations. Starts a durable job and returns its id at "
    "once; with dry_run, the whole Plan. Classes are derived from the data. Follows the AutoML policy.",
    "evaluate": "Measure a model on a dataset: mIoU, PQ, AP (instances: AP alone), per class in metrics.json, with "
    "pictures. Starts a job.",
    "export": "Export a checkpoint to export/model.onnx, checked against the trained network. Starts a job.",
    "quantize": "Quantize a model to 8 bits; measures size, latency and metrics before and after. Starts a job.",
    "inference": "Run a model on images: overlays, categories.json, and by mode instances.json (COCO results), "
    "panoptic.json with maps of ids, semantic maps. Starts a job.",
    "gen_trt_engine": "Build a TensorRT engine from ONNX; needs an NVIDIA GPU and the package tensorrt. Starts a job.",
}
_TITLES = {"gen_trt_engine": "Build TensorRT engine"}


class DigestMismatch(InvalidRequest):
    code = "digest_mismatch"


def action_tools(services: Services) -> list[RequestTool]:
    return [_action_tool(services, action) for action in REQUESTS]


def _action_tool(services: Services, action: str) -> RequestTool:
    async def handle(request: ActionRequest, _: Context[Any, Any]) -> Answer:
        plan = await anyio.to_thread.run_sync(_planned, services, request, abandon_on_cancel=True)
        if request.dry_run:
            return answer(plan.model_dump(mode="json"), _plan_headline(plan))
        with anyio.CancelScope(shield=True):  # from here on there is a job, and its id is answered
            job, existed = await anyio.to_thread.run_sync(_submitted, services, plan)
        told = Folders.of(services.settings.home, job).fill(list(judging.worth_telling(plan.warnings)))
        warnings = (f"Warning: {warning}" for warning in told)
        if existed:
            known = f"This job existed already (same run_name): nothing new was started. {job.message}".strip()
            return answer(summary(job, message=known), headline(job), *warnings)
        return answer(summary(job), headline(job), *warnings)

    # Additive (a new job, new files), not idempotent unless a run_name makes it so. The job may fetch from S3, fetch
    # published weights and pull images.
    title = _TITLES.get(action, action.capitalize())
    behaviour = Behaviour(title, read_only=False, idempotent=False, open_world=True, starts=True)
    return request_tool(action, _DESCRIPTIONS[action], REQUESTS[action], handle, behaviour, _OUTPUT)


def _submitted(services: Services, plan: Plan) -> tuple[Job, bool]:
    """The job, and whether it existed already."""
    existed = plan.run_name is not None and services.jobs.store.named(plan.run_name, plan) is not None
    return services.jobs.submit(plan), existed


def _planned(services: Services, request: ActionRequest) -> Plan:
    """The Plan; what must not or cannot be started is refused, unless it is a dry run, which says so."""
    plan = services.planner.plan(request)
    if not request.dry_run:
        _refuse_another_digest(services, request, plan)
        refuse_hopeless(services, plan)
    elif (found := lacking(services, plan)) is not None:
        warnings = (*plan.warnings, f"cannot start yet: {found[0]}. {found[1]}")
        plan = plan.model_copy(update={"warnings": warnings})
    return plan


def _plan_headline(plan: Plan) -> str:
    about = f"Plan to {plan.action} (nothing started). AutoML: {plan.automl.route}, {plan.automl.reason.rstrip('.')}"
    return f"{about}. Estimate: {_estimated(plan.estimate)}."


def _estimated(found: Estimate) -> str:
    """Time, memory and disk where they are known, and from what."""
    amounts = [] if found.seconds is None else [f"about {duration(found.seconds)}"]
    needs = {"memory": found.memory_gb, "disk": found.disk_gb}
    amounts += [f"{gb:.1f} GB {what}" for what, gb in needs.items() if gb is not None]
    return f"{', '.join(amounts)} (basis: {found.basis})" if amounts else found.basis


def _refuse_another_digest(services: Services, request: ActionRequest, plan: Plan) -> None:
    expected = request.expect_digest
    if expected is None and services.settings.require_digest:
        raise InvalidRequest(
            "This server starts only reviewed plans: expect_digest is missing.",
            fix="Call with dry_run=true, show the Plan to the user, then repeat with its digest as expect_digest.",
        )
    if expected is not None and expected != plan.digest:
        raise DigestMismatch(
            f"The plan's digest is {plan.digest}, not {expected}: something changed since it was reviewed.",
            fix="Call with dry_run=true again and review the new Plan.",
        )
