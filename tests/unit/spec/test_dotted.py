"""Dotted keys and nested mappings say the same thing."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask2former_mcp.spec import dotted
from mask2former_mcp.spec.experiment import leaves

names = st.text("abcxyz_0", min_size=1, max_size=4)
values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4), st.lists(st.integers(), max_size=3))
nested = st.dictionaries(
    names,
    st.recursive(values, lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=12),
    max_size=4,
)


@given(nested)
def test_unflatten_undoes_flatten(mapping: dict[str, Any]) -> None:
    assert dotted.unflatten(dotted.flatten(mapping)) == mapping


@given(nested)
def test_every_flat_key_is_found_again_in_the_nested_mapping(mapping: dict[str, Any]) -> None:
    for key, value in dotted.flatten(mapping).items():
        assert dotted.get(mapping, key) == value


@given(nested, st.lists(names, min_size=1, max_size=3).map(".".join), values)
def test_with_value_changes_one_key_of_a_copy(mapping: dict[str, Any], key: str, value: Any) -> None:
    before = copy.deepcopy(mapping)
    try:
        changed = dotted.with_value(mapping, key, value)
    except ValueError:
        assert any(
            not isinstance(dotted.get(before, parent), dict)
            for parent in _parents(key)
            if parent in dotted.flatten(before)
        )
    else:
        assert dotted.get(changed, key) == value
        others = {k: v for k, v in dotted.flatten(before).items() if k != key and not k.startswith(f"{key}.")}
        assert others.items() <= dotted.flatten(changed).items() or any(p in others for p in _parents(key))
    assert mapping == before


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def test_lists_and_empty_mappings_are_leaves() -> None:
    assert dotted.flatten({"a": {"b": [1, 2], "c": {}}}) == {"a.b": [1, 2], "a.c": {}}


@pytest.mark.parametrize(
    "flat",
    [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"": 1}, {"a..b": 1}, {".a": 1}, {"a.": 1}],
)
def test_keys_that_contradict_each_other_or_are_malformed_are_refused(flat: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="'"):
        dotted.unflatten(flat)


def test_a_missing_key_is_named_whole() -> None:
    with pytest.raises(KeyError, match=r"train\.optim\.lr"):
        dotted.get({"train": {}}, "train.optim.lr")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train.num_epoch", "train.num_epochs"),
        ("train.lr", "train.optim.lr"),
        ("model.num_classes", "model.sem_seg_head.num_classes"),
        ("dataset.train.batchsize", "dataset.train.batch_size"),
        ("model.mask_former.num_queries", "model.mask_former.num_object_queries"),
    ],
)
def test_the_key_that_was_meant_is_among_the_nearest(typed: str, meant: str) -> None:
    assert meant in dotted.nearest(typed, leaves())


def test_nothing_is_near_to_nonsense() -> None:
    assert dotted.nearest("zzzzqqqq", leaves()) == []
