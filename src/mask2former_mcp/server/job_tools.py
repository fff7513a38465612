"""Jobs: list, look, wait, read logs and metrics, find files, cancel, delete, resume."""

import time
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult

from mask2former_mcp.automl import resume
from mask2former_mcp.errors import InvalidRequest, StoreError
from mask2former_mcp.jobs.job import Job
from mask2former_mcp.jobs.logs import MAX_READ
from mask2former_mcp.jobs.members import shown_trial
from mask2former_mcp.server.answers import answer
from mask2former_mcp.server.confirmation import confirmed
from mask2former_mcp.server.job_facts import (
    SUMMARY_SCHEMA,
    about,
    headline,
    listed,
    membership,
    study,
    summary,
    unreadable,
)
from mask2former_mcp.server.requests import (
    ConfirmedRequest,
    JobLogsRequest,
    JobMetricsRequest,
    JobRequest,
    ListArtifactsRequest,
    ListJobsRequest,
    ResumeJobRequest,
    WaitForJobRequest,
)
from mask2former_mcp.server.schema import Schema
from mask2former_mcp.server.services import Services
from mask2former_mcp.server.tool import Answer, Behaviour, RequestTool, in_thread, request_tool
from mask2former_mcp.server.untrusted import MAX_LOG, clean_line, fenced, newest_within
from mask2former_mcp.staging.uri import SCHEME

_POLL_S = 0.5
_HAIR = 1e-6


def _paged(name: str, **more: str) -> Schema:
    listed = {name: {"type": "array"}, "next_cursor": {"type": ["string", "null"]}}
    return {"type": "object", "properties": {**listed, **{key: {"type": kind} for key, kind in more.items()}}}


def job_tools(services: Services) -> list[RequestTool]:
    return [*_reading_tools(services), *_changing_tools(services)]


def _reading_tools(services: Services) -> list[RequestTool]:
    def read(title: str) -> Behaviour:
        return Behaviour(title, read_only=True)

    make = request_tool
    return [
        make(
            "list_jobs",
            "Jobs, newest first.",
            ListJobsRequest,
            in_thread(partial(_list_jobs, services)),
            read("List jobs"),
            _paged("jobs"),
        ),
        make(
            "get_job",
            "One job now, and what it is about. A training on the AutoML route also shows its study.",
            JobRequest,
            in_thread(partial(_get_job, services)),
            read("Job"),
            SUMMARY_SCHEMA,
        ),
        make(
            "wait_for_job",
            "Wait until the job ends, at most timeout_s (<= 50), with progress. Still running afterwards is not an "
            "error: call again.",
            WaitForJobRequest,
            partial(_wait_for_job, services),
            read("Wait for job"),
            SUMMARY_SCHEMA,
        ),
        make(
            "get_job_logs",
            "The job's log, also of crashed runs. Untrusted text.",
            JobLogsRequest,
            in_thread(partial(_logs, services)),
            read("Job log"),
            _paged("lines", job_id="string"),
        ),
        make(
            "get_job_metrics",
            "Metrics per epoch, each name with its own epochs, thinned to max_points.",
            JobMetricsRequest,
            in_thread(partial(_metrics, services)),
            read("Job metrics"),
            {"type": "object", "properties": {"job_id": {"type": "string"}, "metrics": {"type": "object"}}},
        ),
        make(
            "list_artifacts",
            "Files that the job wrote: checkpoints, ONNX, metrics, pictures; id_map: pixels are ids, not for the eye.",
            ListArtifactsRequest,
            in_thread(partial(_artifacts, services)),
            read("Artifacts"),
            _paged("artifacts", job_id="string", folder="string"),
        ),
    ]


def _changing_tools(services: Services) -> list[RequestTool]:
    return [
        request_tool(
            "cancel_job",
            "End a job's processes. Checkpoints stay; resume_job continues. Asks the user first.",
            ConfirmedRequest,
            partial(_cancel, services),
            Behaviour("Cancel job", read_only=False, destructive=True),
            SUMMARY_SCHEMA,
        ),
        request_tool(
            "delete_job",
            "Delete an ended job with its folder, checkpoints included. Asks the user first.",
            ConfirmedRequest,
            partial(_delete, services),
            Behaviour("Delete job", read_only=False, destructive=True),
            SUMMARY_SCHEMA,
        ),
        request_tool(
            "resume_job",
            "Continue an ended job from its last checkpoint: same id, same folder, next attempt.",
            ResumeJobRequest,
            partial(_resume, services),
            Behaviour("Resume job", read_only=False, idempotent=False, open_world=True, starts=True),
            SUMMARY_SCHEMA,
        ),
    ]


def _list_jobs(services: Services, request: ListJobsRequest) -> CallToolResult:
    left_out: list[StoreError] = []
    jobs, cursor = services.jobs.list(
        state=request.status,
        action=request.action,
        study_id=request.study_id,
        limit=request.limit,
        cursor=request.cursor,
        unreadable=left_out.append,
    )
    facts = {"jobs": [listed(job) for job in jobs], "next_cursor": cursor, **unreadable(left_out)}
    return answer(facts, *([_branch(job) for job in jobs] or ["No jobs."]))


def _branch(job: Job) -> str:
    whose = membership(job)
    part = f"trial {job.trial}" if job.trial is not None else "evaluation"
    return headline(job) + (f" - {part} of {whose['study_id']}" if whose else "")


def _get_job(services: Services, request: JobRequest) -> CallToolResult:
    job = services.jobs.get(request.job_id)
    facts = {**summary(job), "about": about(job)}
    found = study(job, services.jobs)
    if found is not None:
        facts["study"] = found
    return answer(facts, headline(job))


async def _wait_for_job(services: Services, request: WaitForJobRequest, context: Context[Any, Any]) -> Answer:
    """Poll the store: it is the truth, whoever supervises. Progress goes out when something changed."""
    deadline = time.monotonic() + request.timeout_s
    shown, reported = "", -1.0
    while True:
        job: Job = await anyio.to_thread.run_sync(services.jobs.get, request.job_id, abandon_on_cancel=True)
        if (line := headline(job)) != shown and reported < 1.0:
            # The protocol wants each value above the last: another phase at the same progress moves it by a hair,
            # and a job that was put back to its last checkpoint stands still until it has caught up.
            shown, reported = line, min(max(job.progress, reported + _HAIR), 1.0)
            await context.report_progress(max(reported, 0.0), 1.0, clean_line(line, limit=200))
        left = deadline - time.monotonic()
        if job.state.terminal:
            return answer(summary(job), headline(job))
        if left <= 0:
            message = f"Still {job.state.value}: it goes on, call wait_for_job again. {job.message}".strip()
            return answer(summary(job, message=message), headline(job))
        await anyio.sleep(min(_POLL_S, left))


def _logs(services: Services, request: JobLogsRequest) -> CallToolResult:
    page = services.jobs.logs(
        request.job_id, tail=request.tail, grep=request.grep, cursor=request.cursor, budget=MAX_LOG
    )
    lines = [clean_line(line) for line in page.lines]
    kept = newest_within(lines, MAX_LOG)
    left_out = len(lines) - len(kept)  # only without a cursor: with one they come with the next
    facts = {"job_id": request.job_id, "lines": kept, "next_cursor": page.next_cursor}
    whose = request.job_id
    if page.job_id != request.job_id:
        facts["log_of"] = page.job_id
        whose += f", which is that of {page.job_id}"
    note = f" ({left_out} earlier lines left out: lower tail, or grep)" if left_out else ""
    if request.cursor is None and page.size > MAX_READ:
        facts["searched"] = f"the last {MAX_READ} of {page.size} bytes; cursor='0' reads from the start"
        note += f" ({facts['searched']})"
    if page.size == 0:
        facts["message"] = clean_line(services.jobs.why_empty(page.job_id))
        text = f"Log of {whose}: {facts['message']}"
    else:
        text = fenced(kept, f"Log of {whose}{note}") if kept else f"Log of {whose}: no such lines{note}."
    return answer(facts, text=f"{text}\nnext_cursor: {page.next_cursor}")


def _metrics(services: Services, request: JobMetricsRequest) -> CallToolResult:
    series = services.jobs.metrics(request.job_id, max_points=request.max_points)
    return answer({"job_id": request.job_id, "metrics": series})


def _artifacts(services: Services, request: ListArtifactsRequest) -> CallToolResult:
    found = services.jobs.artifacts(request.job_id)
    if request.cursor is not None and not (request.cursor.isascii() and request.cursor.isdigit()):
        raise InvalidRequest(
            f"cursor {request.cursor!r} is not one that list_artifacts answered", fix="Pass next_cursor unchanged."
        )
    start = int(request.cursor or 0)
    folder = str(services.jobs.results_dir(request.job_id))
    # The path below the folder says it all: the absolute one, repeated for each file, would double the answer.
    page = [
        {key: value for key, value in item.items() if key != "file"} for item in found[start : start + request.limit]
    ]
    cursor = str(start + request.limit) if start + request.limit < len(found) else None
    facts = {"job_id": request.job_id, "folder": folder, "artifacts": page, "next_cursor": cursor}
    job = services.jobs.store.get(request.job_id)
    if job.plan.study is not None and (
        shown := shown_trial(services.jobs.store, job, services.jobs.results_dir(job.id))
    ):
        facts["next"] = f"list_artifacts(job_id='{shown}') for its best trial's checkpoints"
    if (chosen := job.plan.results_dir or "").startswith(SCHEME):
        facts["uploaded_to"] = chosen
    return answer(facts)


async def _cancel(services: Services, request: ConfirmedRequest, context: Context[Any, Any]) -> Answer:
    job: Job = await anyio.to_thread.run_sync(services.jobs.get, request.job_id)
    ends = await anyio.to_thread.run_sync(services.jobs.cancellable, job.id)
    if ends:
        what = f"{job.id} ({job.state.value}, {job.progress:.0%})"
        question = f"Cancel {what if ends[0].id == job.id else f'the {len(ends)} running jobs of {what}'}? "
        asked = await confirmed(context, f"{question}Checkpoints stay.", confirm=request.confirm)
        if asked is not None:
            return asked
    job = await anyio.to_thread.run_sync(services.jobs.cancel, request.job_id)
    return answer(summary(job), headline(job))


async def _delete(services: Services, request: ConfirmedRequest, context: Context[Any, Any]) -> Answer:
    job, _ = await anyio.to_thread.run_sync(services.jobs.deletable, request.job_id)
    question = f"Delete {job.id} ({job.action}, {job.state.value}) with its folder and checkpoints?"
    if (asked := await confirmed(context, question, confirm=request.confirm)) is not None:
        return asked
    job = await anyio.to_thread.run_sync(services.jobs.delete, request.job_id)
    facts = summary(job, message="deleted, with its folder")
    return answer({**facts, "next": "list_jobs()"}, f"{job.id} deleted")


async def _resume(services: Services, request: ResumeJobRequest, _: Context[Any, Any]) -> Answer:
    def decide() -> dict[str, Any] | None:
        machine = services.planner.planner.machine
        return resume.changes(services.jobs.get(request.job_id), request.num_epochs, request.automl, machine)

    budget = await anyio.to_thread.run_sync(decide, abandon_on_cancel=True)
    with anyio.CancelScope(shield=True):  # from here on the job goes on, and that is answered
        go_on = partial(services.jobs.resume, request.job_id, num_epochs=request.num_epochs, study=budget)
        job = await anyio.to_thread.run_sync(go_on)
    return answer(summary(job), headline(job))
