"""Spec keys are found by words from the key or its help."""

import pytest

from mask2former_mcp import bundle
from mask2former_mcp.server.spec_search import search


@pytest.fixture(scope="module")
def train_schema():
    return bundle.load().schema("train")


def paths(schema, query, limit=5):
    return [match["path"] for match in search(schema, query, limit)[0]]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("learning rate", "train.optim.lr"),
        ("num_epochs", "train.num_epochs"),
        ("train.optim.lr", "train.optim.lr"),
        ("batch size train", "dataset.train.batch_size"),
        ("num classes", "model.sem_seg_head.num_classes"),
    ],
)
def test_the_key_that_is_meant_is_among_the_first(train_schema, query, wanted):
    assert wanted in paths(train_schema, query)


def test_a_match_says_type_default_bounds_and_help(train_schema):
    found = search(train_schema, "train.num_epochs", 1)[0][0]
    assert {"path", "type", "default", "minimum", "help"} <= set(found)


def test_an_empty_query_lists_popular_keys_first_and_counts_all(train_schema):
    first, total = search(train_schema, "", 3)
    assert len(first) == 3
    assert total > 100


def test_a_misspelt_key_finds_its_neighbours(train_schema):
    assert "train.num_epochs" in paths(train_schema, "train.nmu_epohcs")
