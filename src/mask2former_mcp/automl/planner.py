"""A train request on the `auto` route -> the Plan of a study; any other request passes through unchanged.

A study of one trial is the plain run itself: what a machine without a GPU gets unless more is asked.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mask2former_mcp import bundle as bundles
from mask2former_mcp.automl import budget, derive, trials
from mask2former_mcp.automl.budget import Devices, StudySettings
from mask2former_mcp.automl.space import Space
from mask2former_mcp.bundle import Bundle
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.planner import Planner
from mask2former_mcp.planning.request import ActionRequest, AutomlSettings, TrainRequest

_OF_OTHER_TRIALS = ("algorithm", "search_space", "seed", "reduction_factor", "max_concurrent")  # that follow trial 0


class StudyPlanner:
    """Stands in front of the planner; what it adds is in Plan.study, the warnings and the digest."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner

    def plan(self, request: ActionRequest) -> Plan:
        plan = self.planner.plan(request)
        if not isinstance(request, TrainRequest):
            return plan
        asked = request.automl or AutomlSettings()
        if plan.automl.route != "automl":
            return plan
        if asked.max_epochs is not None:
            plan = self._with_epochs(request, plan, asked.max_epochs)
        settings, words = self._settings(asked, plan)
        return plan.model_copy(
            update={
                "study": settings.model_dump(mode="json"),
                "metric": settings.metric,
                "estimate": budget.estimate(plan.estimate, settings),
                "warnings": (*words, *settings.adjustments, *plan.warnings),
                "digest": _digest(plan.digest, settings.model_dump(mode="json")),
            }
        )

    def _with_epochs(self, request: TrainRequest, plan: Plan, epochs: int) -> Plan:
        """Every trial, the plain run too, has the same number of epochs: otherwise nothing could be compared."""
        if int(plan.spec["train"]["num_epochs"]) == epochs:
            return plan
        if request.num_epochs is not None:
            raise InvalidRequest(
                f"num_epochs={request.num_epochs} and automl.max_epochs={epochs} disagree: trials are trained and "
                "compared at one number of epochs",
                fix="Leave one of them out.",
            )
        return self.planner.plan(request.model_copy(update={"num_epochs": epochs}))

    def _settings(self, asked: AutomlSettings, plan: Plan) -> tuple[StudySettings, tuple[str, ...]]:
        """The settings; and what to say of them first."""
        train = plan.spec["train"]
        bundle = self.planner.bundle
        caps = budget.batch_cap(trials.training_images(plan), train)
        space = derive.derive(
            bundle.schema("train"),
            plan.spec,
            wishes=asked.search_space,
            shorthand=bundle.shorthand,
            declared=_declared(bundle),
            caps=caps,
        )
        devices = devices_of(self.planner.machine, train)
        settings = budget.settle(asked, plan.spec, devices, space, plan.metric)
        if settings.max_trials > 1:
            return settings, (budget.cost_words(plan.estimate, settings),)
        words = f"AutoML: a study of one trial, the resolved spec as it is: {_why_one(asked, devices, space)}"
        words += budget.clock_words(settings)
        if trials.start_weights(plan)[0] is not None:
            words += "; two evaluate jobs come with it, of the starting weights before and of the result after"
        return settings, (words, *_without_effect(asked, space))


def devices_of(machine: Machine, train: Mapping[str, Any]) -> Devices:
    if machine.gpus:
        return Devices("gpu", machine.gpus, int(train.get("num_gpus", 1)))
    return Devices("cpu", max(1, machine.cpus), 1)


def _declared(bundle: Bundle) -> dict[str, dict[str, Any]] | None:
    """Our own search ranges, for another bundle of the same network whose schema has none."""
    own = bundles.load()
    if bundle.directory == own.directory or bundle.network_arch != own.network_arch:
        return None
    return derive.declarations(own.schema("train"))


def _why_one(asked: AutomlSettings, devices: Devices, space: Space) -> str:
    if asked.max_trials == 1:
        return "max_trials=1"
    if not space.parameters:
        return f"nothing is left to search ({left_out(space)})"
    return (
        f"no GPU here, so that a search would take several times as long as a training on the {devices.count} "
        'processor cores; automl={"max_trials": 4} searches all the same, also with resume_job later'
    )


def _without_effect(asked: AutomlSettings, space: Space) -> tuple[str, ...]:
    """Settings that say how to search, where nothing is searched yet."""
    said = [f"automl.{name}" for name in _OF_OTHER_TRIALS if getattr(asked, name) is not None]
    if not said or not space.parameters:
        return ()
    return (f"{', '.join(said)}: without effect on one trial; for those that resume_job adds with a bigger max_trials",)


def left_out(space: Space) -> str:
    return "; ".join(f"{key}: {reason}" for key, reason in list(space.left_out.items())[:3]) or "no key is searchable"


def _digest(plain: str, settings: Mapping[str, Any]) -> str:
    """The plain Plan's digest and the study's settings, in one."""
    text = plain + json.dumps(settings, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
