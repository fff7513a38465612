"""A typed request -> the frozen Plan. Nothing is started or written, but for the cache of dataset facts."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mask2former_mcp import policy
from mask2former_mcp.bundle import Bundle
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.jobs import contained
from mask2former_mcp.jobs.folders import stored_results_dir
from mask2former_mcp.jobs.plan import AutomlDecision, Plan, Staging
from mask2former_mcp.lineage import Earlier, Parent
from mask2former_mcp.planning import (
    arguments,
    contract,
    fitness,
    inferred,
    judging,
    loading,
    machine,
    place,
    sources,
    validate,
    weights,
)
from mask2former_mcp.planning.contract import Contract
from mask2former_mcp.planning.digest import digest
from mask2former_mcp.planning.folders import ARGUMENTS, Asked
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.mask2former import Mask2FormerRules
from mask2former_mcp.planning.merge import Layer, merge
from mask2former_mcp.planning.place import Place
from mask2former_mcp.planning.request import REQUESTS, ActionRequest
from mask2former_mcp.planning.rules import Rules, Situation, rules_for
from mask2former_mcp.planning.sources import Data
from mask2former_mcp.planning.weights import Weights
from mask2former_mcp.settings import KEY_VARIABLE, Settings
from mask2former_mcp.spec import dotted

RULES: Mapping[str, Rules] = {"mask2former": Mask2FormerRules()}
_ACTIONS = {model: action for action, model in REQUESTS.items()}
DEFAULT_METRIC = "mIoU"
_ASK_AGAIN_S = 30.0  # one Plan, which looks several times, waits once for a silent driver
DEADLINE_S = 40.0  # of everything that a Plan reads; what needs longer goes on in the background


class ParentSource(Protocol):
    """Where finished work is looked up; `Jobs` is one."""

    def parent(self, job_id: str) -> Parent:
        """NotFound when there is no such job."""

    def earlier(self, action: str) -> Sequence[Earlier]:
        """What finished jobs of this action took, newest first."""


@dataclass(frozen=True, slots=True)
class _Draft:
    overrides: dict[str, Any]
    situation: Situation  # with the final spec
    notes: tuple[str, ...]
    staging: tuple[Staging, ...]  # of published weights


class Planner:
    """Plans requests for one bundle on one machine."""

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        parents: ParentSource,
        machine: Machine | None = None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bundle, self.settings, self.parents = bundle, settings, parents
        self.rules = rules_for(bundle, RULES)
        self.metric = bundle.metric or DEFAULT_METRIC
        self._given, self._environ, self._clock = machine, environ, clock
        self._seen: Machine | None = None
        self._seen_at = 0.0

    @property
    def machine(self) -> Machine:
        """Looked at once; but a driver that did not answer is asked again, as it may only have been slow."""
        if self._given is not None:
            return self._given
        seen = self._seen
        if seen is None or (seen.trouble and self._clock() - self._seen_at >= _ASK_AGAIN_S):
            seen = self._seen = machine.look(self.settings, self._environ)
            self._seen_at = self._clock()
        return seen

    def plan(self, request: ActionRequest) -> Plan:
        """The whole Plan, or an error that says what to change. With dry_run, what cannot run yet is a warning."""
        action, bundle = _ACTIONS[type(request)], self.bundle
        left_s = self._countdown()
        schema, template, contract_notes = contract.spec_parts(bundle, action)
        said = self._said(request, action, schema, template)
        automl = self._policy(request, action)

        # Whose weights, where it runs, which data and what the data says.
        parent_id = getattr(request, "parent_job_id", None)
        parent = self.parents.parent(parent_id) if parent_id else None
        tensorrt = weights.is_tensorrt(request, action, parent, said)
        where = place.choose(request, action, bundle, self.settings, tensorrt=tensorrt)
        terms = contract.terms(bundle, action, schema, template, runtime=where.runtime, tensorrt=tensorrt)
        metric, params = (parent.metric if parent else None) or self.metric, terms.source.spec_params(action)
        chosen = weights.choose(
            request, action, said, params, parent,
            tensorrt=tensorrt, metric=metric, home=self.settings.home, left_s=left_s,
        )  # fmt: skip
        data = self._data(request, terms.source, said, parent, chosen.known_spec, left_s)
        place.refuse_among_data(where.results_dir, data.datasets)

        # One spec out of all of it: is it legal, can it run here, what will it take?
        draft = self._draft(request, said, terms, data, chosen, where, parent, tensorrt)
        spec, home = draft.situation.spec, self.settings.home
        staging = (*data.staging, *draft.staging, *inferred.staging(chosen, home))
        validate.check_schema(spec, schema, self.rules.remarks)
        free_gb = machine.free_gb(home / stored_results_dir(home, "", where.results_dir))
        estimate, judged = judging.judge(
            request, draft.situation, where.missing, automl, self.bundle, self.rules, self.parents.earlier, free_gb
        )
        has_key, key_notes = self._key(terms.source, action, where)
        notes = (
            *automl.warnings, *data.warnings, *draft.notes, *judged, *chosen.warnings, *contract_notes, *key_notes,
        )  # fmt: skip
        return Plan(
            action=action,
            automl=AutomlDecision(policy=automl.policy, route=automl.route, source=automl.source, reason=automl.reason),
            spec_overrides=draft.overrides,
            spec=dict(spec),
            command=contract.command(bundle, action, tensorrt),
            image=where.image,
            platform=where.platform,
            runtime=where.runtime,
            mounts=contained.planned(spec) if where.platform == "docker" else (),
            estimate=estimate,
            warnings=judging.by_urgency(notes),
            digest=self._digest(
                action, spec, data.datasets, inferred.stand_ins(params, chosen, staging, home), where, said
            ),
            run_name=request.run_name,
            parent_job_id=parent_id,
            results_dir=where.results_dir,
            checkpoint=inferred.checkpoint(chosen, home),
            staging=staging,
            datasets=dict(data.datasets or (parent.datasets if parent else {})),
            artifacts=contract.artifacts(action, spec, terms.source, tensorrt and where.runtime == "tao"),
            key_from_environment=has_key,
            metric=self._metric(spec, where),
        )

    def _room(self, where: Place) -> Machine:
        """What a job may use of the machine: a container has no more cores than the operator gives it."""
        cores = self.settings.container_cpus if where.platform == "docker" else 0.0
        return replace(self.machine, cpus=min(max(1, int(cores)), self.machine.cpus)) if cores else self.machine

    # --- steps -------------------------------------------------------------------------------------------------------

    def _countdown(self) -> Callable[[], float]:
        """How many seconds are left, whenever that is asked, of what this Plan may take."""
        end = self._clock() + DEADLINE_S
        return lambda: max(0.0, end - self._clock())

    def _said(
        self, request: ActionRequest, action: str, schema: Mapping[str, Any], template: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the caller said, in one flat mapping of known keys with values that the schema allows."""
        said = arguments.said(request, action, self.bundle, self.rules, validate.leaf_keys(schema, template))
        paths = {row.key for row in self.bundle.data_sources(action)}  # read, and repaired, by the data step
        plain = {key: value for key, value in said.items() if key not in paths}
        validate.check_schema(merge(template, [Layer("said", plain)])[0], schema, self.rules.remarks)
        return said

    def _draft(
        self,
        request: ActionRequest,
        said: Mapping[str, Any],
        terms: Contract,
        data: Data,
        chosen: Weights,
        where: Place,
        parent: Parent | None,
        tensorrt: bool,
    ) -> _Draft:
        """Template < preset < parent's values < data sources < what was said < lineage < what follows from these."""
        action = _ACTIONS[type(request)]
        preset, preset_notes = self._preset(request, chosen.known_spec)
        params, home = terms.source.spec_params(action), self.settings.home
        files, file_notes = inferred.values(params, said, chosen, home)
        published = inferred.defaults(params, said, chosen)
        said = {key: value for key, value in said.items() if key not in data.read and key not in files}
        set_ = terms.fitting({**said, **place.devices(said, action)})
        layers = [
            Layer("preset", preset, listed=False),
            Layer("data sources", data.values),
            Layer("arguments and overrides", set_),
            Layer("lineage", files),
        ]
        spec, _ = merge(terms.template, layers)
        situation = Situation(
            action, where.runtime, where.platform, self._room(where), tensorrt, spec, said, data.format, data.facts,
            data.images, data.labels, parent, chosen.known_spec, published=published,
        )  # fmt: skip
        derived = self.rules.derive(situation)
        follows = terms.fitting(derived.values)
        carried = _carried(follows, chosen.known_spec, self.rules)
        layers.insert(1, Layer("carried", carried, listed=False))
        layers.append(Layer("derived", {k: v for k, v in follows.items() if k not in carried}))
        spec, overrides = merge(terms.template, layers)
        staging, fetch_notes = inferred.downloads(params, published, spec, home)
        unread = sorted(said.keys() - set_.keys() - follows.keys())
        notes = [f"left out, the image does not read it: {', '.join(unread)}"] if unread else []
        notes = [*preset_notes, *file_notes, *derived.warnings, *fetch_notes, *notes]
        return _Draft(overrides, replace(situation, spec=spec), tuple(notes), staging)

    def _metric(self, spec: Mapping[str, Any], where: Place) -> str:
        """What tells a good epoch: the bundle's metric, or that of the mode. TAO's images measure the bundle's only."""
        if where.runtime == "tao":
            return self.metric
        return self.rules.metrics.get(spec.get("model", {}).get("mode"), self.metric)

    def _key(self, source: Bundle, action: str, where: Place) -> tuple[bool, list[str]]:
        """Whether the encryption key enters the spec; and a note where it is there and does not."""
        if not self._environ.get(KEY_VARIABLE) or not contract.takes_key(source, action):
            return False, []
        if where.runtime == "tao" and not self.rules.tao_needs_key:
            why = "TAO's scripts of this model never use it, and would write it into files of the results"
            return False, [f"{KEY_VARIABLE} is not handed on: {why}"]
        return True, []

    def _policy(self, request: ActionRequest, action: str) -> policy.Decision:
        state = policy.BundleState(
            self.bundle.automl_enabled, self.bundle.automl_runnable() if action == "train" else None
        )
        explicit, words = getattr(request, "automl_policy", None), getattr(request, "request", None)
        return policy.decide(action, explicit, words, state)

    def _data(
        self,
        request: ActionRequest,
        source: Bundle,
        said: Mapping[str, Any],
        parent: Parent | None,
        known_spec: Mapping[str, Any] | None,
        left_s: Callable[[], float],
    ) -> Data:
        action = _ACTIONS[type(request)]
        rows = source.data_sources(action)
        known = {row.source for row in rows} | {"eval_dataset", "train_datasets"} if rows else set()
        named = {
            name: getattr(request, argument)
            for name, argument in ARGUMENTS.items()
            if getattr(request, argument, None) is not None and (name in known or not rows)
        }
        if request.dataset_format and self.bundle.formats and request.dataset_format not in self.bundle.formats:
            raise InvalidRequest(
                f"dataset_format={request.dataset_format!r} is not one of this model's",
                fix=f"Choose one of {', '.join(self.bundle.formats)}.",
            )
        data = sources.gather(
            Asked(action, named, said, request.dataset_format, parent, known_spec, rows, left_s), self.settings
        )
        return replace(data, warnings=(*data.warnings, *fitness.problems(data.facts)))

    def _preset(self, request: ActionRequest, known_spec: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
        """The named overrides, less what the parent's weights or the backbone argument decide."""
        name = getattr(request, "preset", None)
        if name is None:
            return {}, []
        if name not in self.bundle.presets:
            raise InvalidRequest(
                f"preset={name!r} does not exist", fix=f"Choose one of {', '.join(self.bundle.presets) or 'none'}."
            )
        values, notes = dict(self.bundle.presets[name]), []
        if known_spec is not None:
            values = {key: value for key, value in values.items() if not self.rules.is_architecture(key)}
            notes.append(f"preset={name}: its network is left out, because the weights decide the network")
        elif getattr(request, "backbone", None) is not None:
            values = {key: value for key, value in values.items() if not key.startswith("model.backbone.")}
            notes.append(f"preset={name}: its backbone is left out, because the argument backbone names another")
        return values, notes

    def _digest(
        self, action: str, spec: Mapping[str, Any], datasets: Mapping[str, Any], stand_ins: Mapping[str, str],
        where: Place, said: Mapping[str, Any],
    ) -> str:  # fmt: skip
        machines = [key for key in loading.KEYS if key not in said] if where.runtime == "engine" else ()
        return digest(
            action=action, spec=spec, bundle_digest=self.bundle.digest, datasets=datasets, platform=where.platform,
            runtime=where.runtime, image=where.image, home=self.settings.home, stand_ins=stand_ins,
            machines=machines,
        )  # fmt: skip


def _carried(values: Mapping[str, Any], known: Mapping[str, Any] | None, rules: Rules) -> dict[str, Any]:
    flat = dotted.flatten(known) if known is not None else {}
    listed = ("dataset.", "model.sem_seg_head.num_classes")
    return {
        key: value for key, value in values.items()
        if key in flat and flat[key] == value and not (key.startswith(listed) and rules.is_architecture(key))
        and not key.endswith(".type")
    }  # fmt: skip
