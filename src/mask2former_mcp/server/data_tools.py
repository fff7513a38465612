"""Looking before acting: the machine, the data, the spec."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from mcp.types import CallToolResult

from mask2former_mcp.datasets import check
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.errors import StoreError
from mask2former_mcp.jobs.cached import cache_bound
from mask2former_mcp.server import doctor
from mask2former_mcp.server.answers import answer
from mask2former_mcp.server.requests import CheckDatasetRequest, DoctorRequest, SearchSpecRequest
from mask2former_mcp.server.schema import Schema
from mask2former_mcp.server.services import Services
from mask2former_mcp.server.spec_search import search
from mask2former_mcp.server.tool import Behaviour, RequestTool, in_thread, request_tool
from mask2former_mcp.staging import eviction
from mask2former_mcp.staging.uri import SCHEME

_DOCTOR_OUTPUT: Schema = {
    "type": "object",
    "properties": {"ready": {"type": "boolean"}, "checks": {"type": "array"}},
    "required": ["ready", "checks"],
}
_CHECK_OUTPUT: Schema = {
    "type": "object",
    "properties": {
        "finished": {"type": "boolean"},
        "ready": {"type": ["boolean", "null"]},
        "counts": {"type": "object"},
        "classes": {"type": "array"},
        "problems": {"type": "array"},
        "derived": {"type": "object"},
    },
}
_SEARCH_OUTPUT: Schema = {
    "type": "object",
    "properties": {"matches": {"type": "array"}, "total": {"type": "integer"}},
    "required": ["matches", "total"],
}


def data_tools(services: Services) -> list[RequestTool]:
    return [
        request_tool(
            "doctor",
            "What this machine can run, each check with a fix. Works when everything is broken.",
            DoctorRequest,
            in_thread(partial(_doctor, services)),
            Behaviour("Doctor", read_only=True, open_world=True),
            _DOCTOR_OUTPUT,
        ),
        request_tool(
            "check_dataset",
            "Check a dataset before training: counts, class table, problems with file and id, derived num_classes and "
            "label map, ready or not. Layouts: images/ with annotations_panoptic.json and images_panoptic/, with "
            "annotations.json (COCO), or with masks/ and annotations.jsonl (ADE); each with a label map; or train/ and "
            "val/ of these. A long check goes on in the background: call again.",
            CheckDatasetRequest,
            in_thread(partial(_check_dataset, services)),
            Behaviour("Check dataset", read_only=True, open_world=True),
            _CHECK_OUTPUT,
        ),
        request_tool(
            "search_spec",
            "Find keys of an action's spec: path, type, default, bounds, choices, help.",
            SearchSpecRequest,
            in_thread(partial(_search_spec, services)),
            Behaviour("Search spec", read_only=True),
            _SEARCH_OUTPUT,
        ),
    ]


def _doctor(services: Services, request: DoctorRequest) -> CallToolResult:
    report = doctor.examine(services, request.platform)
    verdict = "Ready." if report["ready"] else "Not ready: see the errors."
    return answer(report, text="\n".join([verdict, *doctor.lines(report)]))


def _search_spec(services: Services, request: SearchSpecRequest) -> CallToolResult:
    matches, total = search(services.bundle.schema(request.action), request.query, request.limit)
    return answer({"action": request.action, "matches": matches, "total": total})


def _check_dataset(services: Services, request: CheckDatasetRequest) -> CallToolResult:
    report = dataset_report(services, request)
    return answer(report, _verdict(report))


def dataset_report(services: Services, request: CheckDatasetRequest) -> dict[str, Any]:
    """The report without the parts that say nothing (datasets/check.py: Report)."""
    report = check.check(
        DatasetRef.parse(request.dataset),
        request.dataset_format,
        home=services.settings.home,
        role=request.role,
        compare_with=DatasetRef.parse(request.compare_with) if request.compare_with else None,
        sample=request.sample,
    )
    if report.finished and request.dataset.startswith(SCHEME):
        with suppress(StoreError):  # nobody can say what live jobs read: then nothing goes
            eviction.trim(services.settings.home, cache_bound(services.settings, services.jobs.store))
    always = ("finished", "ready", "problems")
    return {key: value for key, value in report.as_dict().items() if key in always or value}


def _verdict(report: Mapping[str, Any]) -> str:
    if not report["finished"]:
        return f"{report['dataset']}: the check goes on in the background; {report['next']}."
    fit = "ready" if report["ready"] else "not ready"
    return f"{report['dataset']}: {fit}, {report.get('errors', 0)} errors, {report.get('warnings', 0)} warnings."
