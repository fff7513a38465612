"""The AutoML policy of one run: an explicit value, or the user's own words, or the default; then the route it leads to.

The policy never changes a bundle's metadata, and only `train` is ever routed to a search.
"""

from dataclasses import dataclass
from typing import Literal

from mask2former_mcp.wish import Policy, mentioned, read

Route = Literal["automl", "direct"]
Source = Literal["argument", "request", "default", "action"]


@dataclass(frozen=True, slots=True)
class BundleState:
    """What a bundle says about AutoML: enabled at all, and, if a search could not run, why (None: it could)."""

    automl_enabled: bool
    not_runnable: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """`policy` is on (`auto`) or `off` for this run; `route` is where it led; `warnings` are for the Plan."""

    policy: Policy
    route: Route
    source: Source
    reason: str
    warnings: tuple[str, ...] = ()


def decide(action: str, explicit: str | None, request_text: str | None, bundle: BundleState) -> Decision:
    """Decide policy and route of one run.

    `explicit` is `auto`, `on` (the same) or `off`; it wins over `request_text`, and a contradiction becomes a warning.
    """
    if action != "train":
        return Decision("auto", "direct", "action", f"{action} always runs directly; only train is searched")
    wish = read(request_text or "")
    warnings: tuple[str, ...] = ()
    policy: Policy
    source: Source
    if explicit is not None:
        policy, source = ("off" if explicit == "off" else "auto"), "argument"
        reason = f"automl_policy={explicit}" + (" (the same as auto)" if explicit == "on" else "")
        if wish is not None and wish.policy != policy:
            warnings = (
                f"automl_policy={explicit} and the request's words {wish.words!r} contradict each other: "
                f"the argument wins, so AutoML is {'off' if policy == 'off' else 'on'} for this run",
            )
    elif wish is not None:
        policy, source, reason = wish.policy, "request", f"the request says {wish.words!r}"
    elif (words := mentioned(request_text or "")) is not None:
        policy, source, reason = "auto", "default", "the request mentions AutoML but was not understood: default auto"
        warnings = (f"the request mentions AutoML ({words!r}) but was not understood: pass automl_policy (off or on)",)
    else:
        policy, source, reason = "auto", "default", "nothing was said about AutoML, and the default is auto"
    route, why = _route(policy, bundle)
    return Decision(policy, route, source, f"{reason}; {why}", warnings)


def _route(policy: Policy, bundle: BundleState) -> tuple[Route, str]:
    if policy == "off":
        return "direct", "this run trains directly"
    if not bundle.automl_enabled:
        return "direct", "this model's bundle does not enable AutoML, so it trains directly"
    if bundle.not_runnable is not None:
        return "direct", (
            "AutoML is enabled for this model but not runnable until its schemas are generated "
            f"({bundle.not_runnable}), so it trains directly"
        )
    return "automl", "the model enables AutoML and its train schema and template are there"
