"""Which file of a parent a job starts from, and why."""

from dataclasses import replace
from pathlib import Path

import pytest

from mask2former_mcp import lineage
from mask2former_mcp.errors import InvalidRequest, NotFound, WrongState
from mask2former_mcp.lineage import Parent


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    """Four checkpoints of epochs 1, 3, 5 (two steps); mIoU best at epoch 3; a link and a decoy folder beside them."""
    folder = tmp_path / "best" / "epoch_7" / "results"  # names in the path must not matter
    (folder / "train" / "model_epoch_009_step_00900.pth").mkdir(parents=True)  # a folder is no checkpoint
    for name in ("001_step_00100", "003_step_00300", "005_step_00450", "005_step_00500"):
        (folder / "train" / f"model_epoch_{name}.pth").write_bytes(name.encode())
    (folder / "train" / "mask2former_model_latest.pth").symlink_to("model_epoch_005_step_00500.pth")
    (folder / "train" / "model_epoch_006_step_00600.pth").touch()  # empty: a crash in the middle of writing
    (folder / "train" / "model_epoch_006_step_00600.pth.part").write_bytes(b"x")
    metrics = {1: {"mIoU": 0.2}, 2: {"mIoU": 0.9}, 3: {"mIoU": 0.5, "PQ": 0.1}, 5: {"mIoU": float("nan"), "PQ": 0.3}}
    return Parent("train-x", "train", {}, folder, metrics, "succeeded")


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (None, "003_step_00300"),
        ("best", "003_step_00300"),
        ("latest", "005_step_00500"),
        ("epoch=1", "001_step_00100"),
        ("epoch=5", "005_step_00500"),
        ("epoch=5,step=450", "005_step_00450"),
        ("epoch=5, step=450", "005_step_00450"),
        ("epoch=001", "001_step_00100"),
    ],
)
def test_each_choice_finds_its_file(parent: Parent, choice: str | None, name: str) -> None:
    chosen = lineage.checkpoint(parent, choice)
    assert chosen.path.name == f"model_epoch_{name}.pth"
    assert chosen.sha256 == lineage.sha256(chosen.path)
    assert len(chosen.sha256) == 64


def test_best_is_by_the_metric_that_is_asked_for(parent: Parent) -> None:
    assert lineage.checkpoint(parent, metric="PQ").epoch == 5


def test_the_reason_mentions_a_better_epoch_that_kept_no_checkpoint(parent: Parent) -> None:
    chosen = lineage.checkpoint(parent)
    assert chosen.metric == 0.5
    assert "epoch 2 reached 0.9000, but kept no checkpoint" in chosen.reason


def test_without_any_metric_best_is_undecided_and_latest_is_never_guessed(parent: Parent) -> None:
    with pytest.raises(NotFound, match="recorded no mIoU") as caught:
        lineage.checkpoint(replace(parent, epoch_metrics={}))
    assert "epoch=1,step=100" in caught.value.fix


def test_at_most_ten_checkpoints_are_named(parent: Parent) -> None:
    with pytest.raises(NotFound) as caught:
        lineage.checkpoint(parent, "epoch=999")
    assert caught.value.fix == ("It has epoch=1,step=100; epoch=3,step=300; epoch=5,step=450; epoch=5,step=500.")
    for epoch in range(10, 40):
        (parent.results_dir / "train" / f"model_epoch_{epoch:03d}_step_00900.pth").write_bytes(b"w")
    with pytest.raises(NotFound) as caught:
        lineage.checkpoint(parent, "epoch=999")
    assert caught.value.fix.count("epoch=") == 10
    assert "; ...; epoch=35,step=900; " in caught.value.fix


def test_an_only_checkpoint_needs_no_metric(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "model_epoch_000_step_00010.pth").write_bytes(b"x")
    chosen = lineage.checkpoint(Parent("train-y", "train", {}, tmp_path, {}, "failed"))
    assert chosen.epoch == 0
    assert "only checkpoint" in chosen.reason


@pytest.mark.parametrize("choice", ["epoch=6", "epoch=9", "epoch=2", "epoch=5,step=1"])
def test_an_epoch_without_a_whole_file_is_not_found(parent: Parent, choice: str) -> None:
    with pytest.raises(NotFound, match="no checkpoint"):
        lineage.checkpoint(parent, choice)


@pytest.mark.parametrize("choice", ["newest", "epoch=", "epoch=a", "epoch=-1", "5", "epoch=5;step=450"])
def test_other_words_are_no_choice(parent: Parent, choice: str) -> None:
    with pytest.raises(InvalidRequest, match="neither best, latest"):
        lineage.checkpoint(parent, choice)


@pytest.mark.parametrize("state", ["queued", "preparing", "running", "stopping"])
def test_a_live_parent_must_end_first(parent: Parent, state: str) -> None:
    with pytest.raises(WrongState, match=state):
        lineage.parent_model(replace(parent, state=state), "evaluate.checkpoint")


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "lost"])
def test_an_ended_parent_keeps_its_checkpoints(parent: Parent, state: str) -> None:
    assert lineage.parent_model(replace(parent, state=state), "export.checkpoint").epoch == 3


@pytest.mark.parametrize(
    ("key", "action", "artifact"),
    [
        ("gen_trt_engine.onnx_file", "export", "model.onnx"),
        ("evaluate.trt_engine", "gen_trt_engine", "model.engine"),
        ("inference.trt_engine", "gen_trt_engine", "model.engine"),
    ],
)
def test_each_key_takes_the_file_of_its_kind_of_parent(tmp_path: Path, key: str, action: str, artifact: str) -> None:
    (tmp_path / action).mkdir()
    (tmp_path / action / artifact).write_bytes(b"graph")
    parent = Parent(f"{action}-z", action, {}, tmp_path, {}, "succeeded", parent_job_id="train-x")
    assert lineage.parent_model(parent, key).path.name == artifact
    with pytest.raises(InvalidRequest, match="train job") as caught:
        lineage.parent_model(parent, "evaluate.checkpoint")
    assert "train-x" in caught.value.message
    with pytest.raises(InvalidRequest, match="chooses among training checkpoints"):
        lineage.parent_model(parent, key, "latest")


def test_a_parent_without_its_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no \*.onnx file"):
        lineage.parent_model(Parent("export-z", "export", {}, tmp_path, {}, "failed"), "gen_trt_engine.onnx_file")
    with pytest.raises(NotFound, match="no checkpoint named"):
        lineage.parent_model(Parent("train-z", "train", {}, tmp_path, {}, "failed"), "evaluate.checkpoint")


def test_resume_takes_the_newest_of_the_jobs_own_folder(parent: Parent, tmp_path: Path) -> None:
    chosen = lineage.resume_model(parent.results_dir)
    assert chosen is not None
    assert chosen.step == 500
    assert lineage.resume_model(tmp_path / "nothing") is None


def test_a_named_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "model_epoch_012_step_01300.pth"
    file.write_bytes(b"w")
    chosen = lineage.explicit_file("checkpoint", str(file))
    assert (chosen.epoch, chosen.step) == (12, 1300)
    (tmp_path / "empty.pth").touch()
    for text, error in (
        ("relative.pth", InvalidRequest),
        (str(tmp_path / "empty.pth"), NotFound),
        (str(tmp_path / "none.pth"), NotFound),
        (str(tmp_path), InvalidRequest),
        (str(tmp_path / "model.pkl"), InvalidRequest),
    ):
        with pytest.raises(error, match="checkpoint="):
            lineage.explicit_file("checkpoint", text)


def test_a_changed_file_has_another_digest(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"one")
    first = lineage.sha256(file)
    file.write_bytes(b"three")
    assert lineage.sha256(file) != first
