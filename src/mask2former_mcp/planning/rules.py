"""What is true of one model only, behind one small protocol; the generic rules know nothing but the bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mask2former_mcp.bundle import Bundle
from mask2former_mcp.datasets.facts import DatasetFacts
from mask2former_mcp.jobs.plan import Estimate
from mask2former_mcp.lineage import Earlier, Parent
from mask2former_mcp.planning.machine import Machine
from mask2former_mcp.planning.request import ActionRequest


@dataclass(frozen=True, slots=True)
class Situation:
    """All that is known about one request at the moment a rule looks at it.

    `spec` is nested and merged so far; `said` holds, flat, what the caller set (arguments and overrides); `known_spec`
    is the spec of the job (or of the file beside the checkpoint) that the weights come from.
    """

    action: str
    runtime: str
    platform: str
    machine: Machine
    tensorrt: bool
    spec: Mapping[str, Any]
    said: Mapping[str, Any]
    format: str | None = None
    facts: Mapping[str, DatasetFacts] = field(default_factory=dict)  # train, eval
    images: Mapping[str, int] = field(default_factory=dict)  # train, eval (after a hold-out), inference: how many
    labels: Sequence[tuple[int, str]] = ()  # (id, name) in the label map that the action reads, in its order
    parent: Parent | None = None
    known_spec: Mapping[str, Any] | None = None
    metric: str | None = None  # what a search was asked to maximise
    published: Sequence[str] = ()  # keys that hold the bundle's published weights, because nobody said otherwise

    @property
    def deploy(self) -> bool:
        """Whether TAO's TensorRT image runs it: its spec holds no network, and its numbers are of its own kind."""
        return self.tensorrt and self.runtime == "tao"


@dataclass(frozen=True, slots=True)
class Findings:
    """What a rule concluded: values to set, warnings for the Plan, and what keeps the job from starting today."""

    values: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Rules(Protocol):
    """At most five methods; chosen by the bundle's name. All are pure; a broken rule raises InvalidRequest."""

    remarks: Mapping[str, str]  # spec key -> a sentence for the error when its value is refused by the schema
    metrics: Mapping[str, str]  # model.mode -> the metric that tells a good epoch, where it is not the bundle's
    tao_needs_key: bool  # whether TAO's scripts of this model ever use the encryption key

    def arguments(self, request: ActionRequest) -> dict[str, dict[str, Any]]:
        """argument -> its spec values, for typed arguments that no key of the bundle bears the name of."""

    def is_architecture(self, key: str) -> bool:
        """Whether later actions must repeat this key's value, or the weights do not fit."""

    def derive(self, situation: Situation) -> Findings:
        """Values that follow from the data and from other values."""

    def check(self, situation: Situation) -> Findings:
        """Cross-field rules over the final spec."""

    def estimate(self, situation: Situation, earlier: Sequence[Earlier]) -> Estimate:
        """Steps, seconds, memory, disk."""


class GenericRules:
    """For a bundle this package has no rules for: everything comes from its schemas, templates and tables."""

    remarks: Mapping[str, str] = {}
    metrics: Mapping[str, str] = {}
    tao_needs_key = True

    def arguments(self, request: ActionRequest) -> dict[str, dict[str, Any]]:
        return {}

    def is_architecture(self, key: str) -> bool:
        return key.startswith("model.") and not key.endswith(("pretrained_weights", "pretrained_model_path"))

    def derive(self, situation: Situation) -> Findings:
        return Findings()

    def check(self, situation: Situation) -> Findings:
        return Findings(
            warnings=(
                "this bundle's model has no rules of its own here: class counts, cross-field rules and estimates are "
                "not checked, only its schema is",
            )
        )

    def estimate(self, situation: Situation, earlier: Sequence[Earlier]) -> Estimate:
        gpus = min(1, situation.machine.gpus)
        return Estimate(gpus=gpus, memory_gb=None, steps=None, seconds=None, disk_gb=None, basis="none for this model")


def rules_for(bundle: Bundle, known: Mapping[str, Rules]) -> Rules:
    """The rules of the bundle's network, or the generic ones."""
    return known.get(bundle.network_arch, GenericRules())
