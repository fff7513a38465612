"""What would make a job fail for certain, looked for where a start is asked: better said now than by a failed job.

The planner says what a request can never have here; this asks what may be there tomorrow: a daemon, a package.
"""

from mask2former_mcp.errors import NotAvailable
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.platforms import engine
from mask2former_mcp.server.services import Services


def refuse_hopeless(services: Services, plan: Plan) -> None:
    """NotAvailable with the cause and its fix. A run name that stands is answered with its job, whatever is missing."""
    if plan.run_name is not None and services.jobs.store.named(plan.run_name, plan) is not None:
        return
    if (found := lacking(services, plan)) is not None:
        raise NotAvailable(found[0], fix=f"{found[1]} doctor(platform='{plan.platform}') checks it.")


def lacking(services: Services, plan: Plan) -> tuple[str, str] | None:
    """What is missing, and what to do; None where nothing is."""
    if plan.platform == "docker":
        # Imported here: the docker SDK is slow to import, and only who asks for Docker needs it.
        from mask2former_mcp.server import docker_check

        return docker_check.unusable(services.environ)
    if plan.runtime == "engine" and _runs_tensorrt(plan):
        settings = services.settings
        if "tensorrt" in engine.missing(settings, services.environ, ("tensorrt",)):
            return (
                f"{plan.action} needs the package tensorrt, which {settings.python} does not have",
                f'On a machine with an NVIDIA GPU: {settings.python} -m pip install "tensorrt<11".',
            )
    return None


def _runs_tensorrt(plan: Plan) -> bool:
    return plan.action == "gen_trt_engine" or bool((plan.spec.get(plan.action) or {}).get("trt_engine"))
