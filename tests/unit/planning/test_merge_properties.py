"""Overrides mean the same in every spelling and order; merging them twice changes nothing."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former_mcp import bundle
from mask2former_mcp.errors import InvalidRequest
from mask2former_mcp.planning.merge import Layer, merge, normalise, same
from mask2former_mcp.planning.validate import leaf_keys
from mask2former_mcp.spec import dotted

BUNDLE = bundle.load()
TEMPLATE = BUNDLE.template("train")
KEYS = leaf_keys(BUNDLE.schema("train"), TEMPLATE)
SHORTHAND = BUNDLE.shorthand
SHORT = {key: name for name, key in SHORTHAND.items() if key in KEYS}

plain = (
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text("abc xyz./_-", max_size=12)
    | st.lists(st.integers(0, 9), max_size=4)
)
overrides = st.dictionaries(st.sampled_from(sorted(KEYS)), plain, max_size=12)


def respelled(flat: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same overrides, each key dotted, nested, half nested or by its short name, in another order."""
    items = list(flat.items())
    chance.shuffle(items)
    result: dict[str, Any] = {}
    for key, value in items:
        if key in SHORT and chance.random() < 0.3:
            result[SHORT[key]] = value
            continue
        parts = key.split(".")
        cuts = sorted(chance.sample(range(1, len(parts)), chance.randint(0, len(parts) - 1))) if len(parts) > 1 else []
        names = [".".join(parts[a:b]) for a, b in zip([0, *cuts], [*cuts, len(parts)], strict=True)]
        node = result
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = value
    return result


@settings(max_examples=200, deadline=None)
@given(overrides, st.randoms(use_true_random=False))
def test_dotted_nested_and_mixed_are_the_same(flat: dict[str, Any], chance: random.Random) -> None:
    assert normalise(respelled(flat, chance), KEYS, SHORTHAND) == normalise(flat, KEYS, SHORTHAND) == flat


@settings(max_examples=100, deadline=None)
@given(overrides)
def test_normalising_twice_changes_nothing(flat: dict[str, Any]) -> None:
    once = normalise(flat, KEYS, SHORTHAND)
    assert normalise(once, KEYS, SHORTHAND) == once
    assert normalise(dotted.unflatten(once), KEYS, SHORTHAND) == once


@settings(max_examples=100, deadline=None)
@given(overrides, st.randoms(use_true_random=False))
def test_the_merged_spec_does_not_depend_on_order(flat: dict[str, Any], chance: random.Random) -> None:
    items = list(flat.items())
    chance.shuffle(items)
    one, listed = merge(TEMPLATE, [Layer("said", flat)])
    other, listed_too = merge(TEMPLATE, [Layer("said", dict(items))])
    assert one == other
    assert listed == listed_too
    assert list(listed) == sorted(listed)
    again, _ = merge(one, [Layer("said", flat)])
    assert again == one


@settings(max_examples=100, deadline=None)
@given(overrides)
def test_merging_changes_nothing_else_and_not_the_template(flat: dict[str, Any]) -> None:
    before = BUNDLE.template("train")
    merged, listed = merge(TEMPLATE, [Layer("said", flat)])
    assert before == TEMPLATE
    assert listed.keys() == flat.keys()
    rest = {key: value for key, value in dotted.flatten(TEMPLATE).items() if key not in flat}
    assert rest.items() <= dotted.flatten(merged).items() or all(
        same(dotted.get(merged, key), value) for key, value in rest.items()
    )


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(SHORT)), plain, plain)
def test_one_key_with_two_values_is_an_error_that_names_both(key: str, one: Any, other: Any) -> None:
    both = {key: one, SHORT[key]: other}
    if same(one, other):
        assert normalise(both, KEYS, SHORTHAND) == {key: one} or same(normalise(both, KEYS, SHORTHAND)[key], one)
    else:
        with pytest.raises(InvalidRequest, match="twice") as caught:
            normalise(both, KEYS, SHORTHAND)
        assert SHORT[key] in caught.value.message


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=40).filter(lambda text: text not in KEYS and text not in SHORTHAND), plain)
def test_unknown_keys_never_pass(key: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        normalise({key: value}, KEYS, SHORTHAND)
    assert caught.value.fix


def test_an_unlisted_layer_appears_only_where_it_changes_something() -> None:
    _, listed = merge(TEMPLATE, [Layer("preset", {"train.num_epochs": 10, "train.seed": 5}, listed=False)])
    assert listed == {"train.seed": 5}


def test_a_later_layer_wins() -> None:
    spec, _ = merge(TEMPLATE, [Layer("a", {"train.seed": 5}), Layer("b", {"train.seed": 6})])
    assert spec["train"]["seed"] == 6
