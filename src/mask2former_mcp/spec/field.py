"""How one spec field is declared: default, help, bounds and the TAO keywords that ride along in the schema."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mask2former_mcp.spec.search import KEYWORD, Search

MISSING = "???"
"""The spec's mark for "must be given": a default that no run may keep."""

ENGINE_ONLY = "x-m2f-engine-only"

# YAML 1.1 reads `2e-4` as a string (it wants a dot); people write it all the time.
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def _read_exponent(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _read_whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _not_zero(value: Any) -> Any:
    if value == 0 and not isinstance(value, bool):
        raise ValueError("must be -1 (take the default) or at least 1")
    return value


def _none_or_pair(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) not in (0, 2):
        raise ValueError("must be empty (off) or [height, width]")
    return value


# The reader stands last in each alias: a bound that follows it would enter the schema under pydantic's name (`ge`).
Real = Annotated[float, BeforeValidator(_read_exponent)]
Int = Annotated[int, BeforeValidator(_read_whole)]
Positive = Annotated[int, Field(ge=1), BeforeValidator(_read_whole)]
NotNegative = Annotated[int, Field(ge=0), BeforeValidator(_read_whole)]
Side = Annotated[int, Field(ge=32), BeforeValidator(_read_whole)]
"""Pixels per side of an image: below 32 the coarsest level of features would be empty."""
Factor = Annotated[float, Field(gt=0), BeforeValidator(_read_exponent)]
BatchOrDefault = Annotated[
    int, Field(ge=-1, json_schema_extra={"not": {"const": 0}}), BeforeValidator(_not_zero), BeforeValidator(_read_whole)
]

# Lists come from YAML; inside they are tuples, so that a loaded spec cannot be changed behind anybody's back.
_LIST = Field(strict=False)
Texts = Annotated[tuple[str, ...], _LIST]
Objects = Annotated[tuple[Any, ...], _LIST]
Ints = Annotated[tuple[NotNegative, ...], _LIST]
GpuIds = Annotated[tuple[NotNegative, ...], Field(strict=False, min_length=1, json_schema_extra={"uniqueItems": True})]
FourPositives = Annotated[tuple[Positive, ...], Field(strict=False, min_length=4, max_length=4)]
ThreeReals = Annotated[tuple[Real, ...], Field(strict=False, min_length=3, max_length=3)]
ThreeFactors = Annotated[tuple[Factor, ...], Field(strict=False, min_length=3, max_length=3)]
Sizes = Annotated[tuple[Side, ...], Field(strict=False, min_length=1)]
SizePair = Annotated[tuple[Side, ...], Field(strict=False, min_length=2, max_length=2)]
OptionalPair = Annotated[
    tuple[Side, ...],
    Field(strict=False, max_length=2, json_schema_extra={"if": {"minItems": 1}, "then": {"minItems": 2}}),
    BeforeValidator(_none_or_pair),
]


class Section(BaseModel):
    """A block of the spec: unknown keys refused, no silent conversion ("10" is not 10), no NaN, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


def spec_field(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    multiple_of: int | None = None,
    pattern: str | None = None,
    automl: bool = False,
    math_cond: str | None = None,
    popular: bool = False,
    search: Search | None = None,
    engine_only: bool = False,
) -> Any:
    """A leaf of the spec. Choices are said by the annotation (`Literal`), list sizes too.

    `automl`, `math_cond` and `popular` become the TAO keywords of the same names; `search` becomes `x-m2f-search`, and
    `engine_only`, for a key that TAO's images refuse to read, `x-m2f-engine-only`.
    """
    keywords: dict[str, Any] = {}
    # Left out rather than None: a None would hide what the annotation itself says.
    extra = automl or math_cond or popular or search or engine_only
    said: dict[str, Any] = {"json_schema_extra": keywords} if extra else {}
    if automl:
        keywords["automl_enabled"] = True
    if math_cond is not None:
        keywords["math_cond"] = math_cond
    if popular:
        keywords["popular"] = True
    if search is not None:
        keywords[KEYWORD] = search.keyword()
    if engine_only:
        keywords[ENGINE_ONLY] = True
    return Field(
        default,
        description=help,
        ge=ge,
        gt=gt,
        le=le,
        multiple_of=multiple_of,
        pattern=pattern,
        **said,
    )


def section(model: type[Section], help: str) -> Any:
    """A nested block with all its defaults."""
    return Field(default_factory=model, description=help)
