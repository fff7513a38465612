"""Read-only views under m2f:// for clients that attach context: jobs with spec, log, metrics, files; the bundle."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from mask2former_mcp.errors import InvalidRequest, Mask2FormerError, NotFound, StoreError
from mask2former_mcp.planning.merge import show
from mask2former_mcp.server.answers import presentable
from mask2former_mcp.server.job_facts import about, listed, study, study_result, summary, unreadable
from mask2former_mcp.server.services import Services
from mask2former_mcp.server.untrusted import MAX_LOG, clean_line, fenced, newest_within

_MAX_ARTIFACT_BYTES = 8_000_000
_LOG_TAIL, _MAX_LOG_TAIL = 200, 1000
_Read = TypeVar("_Read")


def add_resources(server: MCPServer[None], services: Services) -> None:
    _add_job_resources(server, services)
    _add_bundle_resources(server, services)


def _add_job_resources(server: MCPServer[None], services: Services) -> None:
    @server.resource("m2f://jobs", name="jobs", description="The newest jobs.", mime_type="application/json")
    def jobs() -> str:
        return _guard(lambda: _json(_newest(services)))

    @server.resource("m2f://jobs/{id}", name="job", description="One job.", mime_type="application/json")
    def job(id: str) -> str:
        return _guard(lambda: _job_text(services, id))

    @server.resource(
        "m2f://jobs/{id}/study",
        name="study",
        description="A search's whole result: winner with its spec, all trials, failures, baseline.",
        mime_type="application/json",
    )
    def whole_study(id: str) -> str:
        return _guard(lambda: _json(_study(services, id)))

    @server.resource(
        "m2f://jobs/{id}/spec", name="job spec", description="The resolved spec.", mime_type="application/yaml"
    )
    def spec(id: str) -> str:
        return _guard(lambda: yaml.safe_dump(presentable(services.jobs.spec(id)), sort_keys=False))

    @server.resource("m2f://jobs/{id}/log{?tail}", name="job log", description="Last lines of the log. Untrusted text.")
    def log(id: str, tail: str = str(_LOG_TAIL)) -> str:  # a text, so that a wrong one is refused by us
        page = _guard(lambda: services.jobs.logs(id, tail=_lines_wanted(tail)))
        return fenced(newest_within([clean_line(line) for line in page.lines], MAX_LOG), f"Log of {id}")

    @server.resource(
        "m2f://jobs/{id}/metrics", name="job metrics", description="Per epoch.", mime_type="application/json"
    )
    def metrics(id: str) -> str:
        return _guard(lambda: _json({"job_id": id, "metrics": services.jobs.metrics(id, max_points=200)}))

    @server.resource("m2f://jobs/{id}/artifacts/{+path}", name="artifact", description="One file of a job.")
    def artifact(id: str, path: str) -> bytes:
        return _guard(lambda: _read_artifact(services, id, path))


def _add_bundle_resources(server: MCPServer[None], services: Services) -> None:
    @server.resource(
        "m2f://schemas/{action}", name="schema", description="JSON Schema of a spec.", mime_type="application/json"
    )
    def schema(action: str) -> str:
        return _guard(lambda: json.dumps(services.bundle.schema(action)))

    @server.resource(
        "m2f://templates/{action}", name="template", description="A spec's defaults.", mime_type="application/yaml"
    )
    def template(action: str) -> str:
        return _guard(lambda: yaml.safe_dump(services.bundle.template(action), sort_keys=False))

    @server.resource("m2f://skill", name="skill", description="The Agent Skill.", mime_type="text/markdown")
    def skill() -> str:
        return _guard(lambda: _skill_text(services))


def _job_text(services: Services, job_id: str) -> str:
    found = services.jobs.get(job_id)
    extra = study(found, services.jobs)
    return _json({**summary(found), "about": about(found), **({"study": extra} if extra else {})})


def _lines_wanted(tail: str) -> int:
    if re.fullmatch("[0-9]{1,9}", tail) and 1 <= int(tail) <= _MAX_LOG_TAIL:
        return int(tail)
    raise InvalidRequest(
        f"tail={show(tail)} is not a whole number from 1 to {_MAX_LOG_TAIL}",
        fix=f"Read ...log?tail={_LOG_TAIL}, or leave tail out for the last {_LOG_TAIL} lines.",
    )


def _newest(services: Services) -> dict[str, Any]:
    left_out: list[StoreError] = []
    jobs, _ = services.jobs.list(limit=50, unreadable=left_out.append)
    return {"jobs": [listed(job) for job in jobs], **unreadable(left_out)}


def _study(services: Services, job_id: str) -> dict[str, Any]:
    job = services.jobs.get(job_id)
    found = study_result(job, services.jobs)
    if found is None:
        raise NotFound(f"{job.id} is no study", fix="A train job on the AutoML route is one; list_jobs shows them.")
    return found


def _skill_text(services: Services) -> str:
    folder = services.bundle.directory
    for candidate in (folder / "SKILL.md", folder / "skill" / "SKILL.md"):
        if candidate.is_file():
            return candidate.read_text(encoding="utf-8")
    raise NotFound(f"The bundle {folder} has no SKILL.md.", fix="Choose a bundle that has one, or read m2f://schemas.")


def _read_artifact(services: Services, job_id: str, path: str) -> bytes:
    """Only what list_artifacts names: a path is compared, never joined."""
    for found in services.jobs.artifacts(job_id):
        if found["path"] == path:
            file = Path(found["file"])
            size = file.stat().st_size
            if size > _MAX_ARTIFACT_BYTES:
                raise NotFound(f"{path} has {size} bytes; at most {_MAX_ARTIFACT_BYTES} are sent.", fix=f"Open {file}.")
            return file.read_bytes()
    raise NotFound(f"{job_id} has no artifact {path!r}.", fix="list_artifacts names what there is.")


def _guard(read: Callable[[], _Read]) -> _Read:
    """Our errors as the SDK's, so that clients get the message instead of a bare failure."""
    try:
        return read()
    except NotFound as error:
        raise ResourceNotFoundError(f"{error.message.rstrip('.')}. {error.fix}") from error
    except Mask2FormerError as error:
        raise ResourceError(f"{error.message.rstrip('.')}. {error.fix}") from error
    except OSError as error:  # a file that went away, or cannot be read
        raise ResourceError(f"{error.filename or 'A file'} cannot be read: {error.strerror or error}.") from error


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(presentable(facts), ensure_ascii=False)
