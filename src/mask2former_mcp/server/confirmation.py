"""Asking the user before something is lost, in both wire eras.

Older clients answer a request sent in the middle of the call; from 2026-07-28 on the call is answered with the question
and repeated with the reply. A client that cannot ask its user must say `confirm=true`: a question sent anyway would be
answered by an error that the model never sees.
"""

import anyio
from mcp.server.mcpserver import Context
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from pydantic import BaseModel, Field

from mask2former_mcp.errors import InvalidRequest

_ASK_IN_RESULT = "2026-07-28"  # protocol versions are dates: they compare as text
_PATIENCE_S = 45.0  # a call returns in under 55 s, whoever is at lunch
_KEY = "confirm"


class NotConfirmed(InvalidRequest):
    code = "confirmation_required"


class Consent(BaseModel):
    confirm: bool = Field(description="Yes, do it.")


async def confirmed(context: Context, question: str, *, confirm: bool) -> InputRequiredResult | None:
    """None when the user agreed; otherwise the question to send back. Raises NotConfirmed when they did not."""
    if confirm:
        return None
    if not _can_ask(context):
        raise NotConfirmed(
            f"{question} This client cannot ask its user.", fix="Ask the user, then call again with confirm=true."
        )
    if (context.protocol_version or "") >= _ASK_IN_RESULT:
        return _read_or_ask(context, question)
    with anyio.move_on_after(_PATIENCE_S):
        try:
            outcome = await context.elicit(question, Consent)
        except ValueError as error:  # accepted, but the form came back empty or with something else in it
            raise _declined(question) from error
        if outcome.action == "accept" and outcome.data.confirm:
            return None
        raise _declined(question)
    raise NotConfirmed(
        f"{question} No answer within {_PATIENCE_S:.0f} s.", fix="Ask the user, then call again with confirm=true."
    )


def _can_ask(context: Context) -> bool:
    capabilities = context.client_capabilities
    elicitation = capabilities.elicitation if capabilities is not None else None
    # A bare `elicitation: {}` predates the modes and means forms.
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _read_or_ask(context: Context, question: str) -> InputRequiredResult | None:
    reply = (context.input_responses or {}).get(_KEY)
    # The state is sealed by the SDK: it proves that this very question was asked, not another job's.
    if reply is None or context.request_state != question:
        form = ElicitRequestFormParams(message=question, requested_schema=Consent.model_json_schema())
        return InputRequiredResult(input_requests={_KEY: ElicitRequest(params=form)}, request_state=question)
    accepted = isinstance(reply, ElicitResult) and reply.action == "accept" and (reply.content or {}).get("confirm")
    if accepted is True:
        return None
    raise _declined(question)


def _declined(question: str) -> NotConfirmed:
    return NotConfirmed(f"{question} The user said no.", fix="Nothing was changed; ask the user what they want.")
