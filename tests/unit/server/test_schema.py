"""Schemas as agents read them."""

from typing import Literal

from pydantic import BaseModel, Field

from mask2former_mcp.server.schema import input_schema


class Inner(BaseModel):
    title: str
    size: int | None = None


class Outer(BaseModel):
    inner: Inner | None = Field(None, description="what is inside")
    kind: Literal["a", "b"] | None = None
    either: int | str | None = None
    needed: int


def test_definitions_are_written_where_they_are_used():
    schema = input_schema(Outer)
    assert schema["properties"]["inner"] == {
        "type": "object",
        "properties": {"title": {"type": "string"}, "size": {"type": "integer"}},
        "required": ["title"],
        "description": "what is inside",
    }


def test_a_property_called_title_is_kept_though_titles_are_dropped():
    assert "title" in input_schema(Outer)["properties"]["inner"]["properties"]


def test_optional_arguments_show_their_type_alone():
    properties = input_schema(Outer)["properties"]
    assert properties["kind"] == {"enum": ["a", "b"], "type": "string"}
    assert properties["either"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}


def test_required_arguments_are_required_and_no_others():
    assert input_schema(Outer)["required"] == ["needed"]
