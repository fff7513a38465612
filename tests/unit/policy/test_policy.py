"""The AutoML policy: who wins where argument and words disagree, and where it leads."""

import pytest

from mask2former_mcp.policy import BundleState, decide

READY = BundleState(automl_enabled=True)


@pytest.mark.parametrize("explicit", ["auto", "on"])
def test_on_means_auto_and_wins_over_words_with_a_warning(explicit: str) -> None:
    decision = decide("train", explicit, "plain training, no HPO", READY)
    assert (decision.policy, decision.route, decision.source) == ("auto", "automl", "argument")
    assert len(decision.warnings) == 1
    assert "contradict" in decision.warnings[0]
    assert "no hpo" in decision.warnings[0]


def test_explicit_off_wins_over_words_with_a_warning() -> None:
    decision = decide("train", "off", "please use AutoML", READY)
    assert (decision.policy, decision.route) == ("off", "direct")
    assert "use automl" in decision.warnings[0]


@pytest.mark.parametrize(
    ("explicit", "words"), [("off", "no HPO"), ("auto", "use AutoML"), ("off", None), ("auto", "go")]
)
def test_agreement_is_silent(explicit: str, words: str | None) -> None:
    assert decide("train", explicit, words, READY).warnings == ()


def test_enabled_but_not_runnable_says_what_is_missing() -> None:
    decision = decide("train", None, None, BundleState(True, "schemas/train.schema.json does not exist"))
    assert (decision.policy, decision.route) == ("auto", "direct")
    assert "enabled for this model but not runnable until its schemas are generated" in decision.reason
    assert "schemas/train.schema.json does not exist" in decision.reason


def test_a_bundle_without_automl_trains_directly() -> None:
    decision = decide("train", "auto", None, BundleState(False))
    assert (decision.policy, decision.route) == ("auto", "direct")
    assert "does not enable" in decision.reason


@pytest.mark.parametrize("action", ["evaluate", "inference", "export", "quantize", "gen_trt_engine"])
@pytest.mark.parametrize("explicit", [None, "auto", "off"])
def test_other_actions_stay_direct(action: str, explicit: str | None) -> None:
    decision = decide(action, explicit, "use AutoML", READY)
    assert (decision.route, decision.source) == ("direct", "action")
