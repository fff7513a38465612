"""Addresses that should not be asked, and paths that should not be touched, are refused while planning, by name."""

import socket
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import InvalidRequest, Mask2FormerError
from mask2former_mcp.jobs.plan import Plan
from mask2former_mcp.planning import place
from mask2former_mcp.staging.uri import Uri

HOSTILE = [
    "s3://",
    "s3:///",
    "s3://../",
    "s3://..",
    "s3://../../etc/passwd",
    "s3:///etc/passwd",
    "s3://bucket/../../x",
    "s3://bucket/..",
    "s3://bucket/a/../b",
    "s3://bucket/./a",
    "s3://bucket//etc/passwd",
    "s3://bucket/a//b",
    "s3://bucket/a\\..\\b",
    "s3://bucket/%s" % ("k" * 1100),
    "s3://bucket/%s/x" % ("n" * 300),
    "s3://169.254.169.254/latest/meta-data",
    "s3://127.0.0.1/x",
    "s3://user:secret@bucket/x",
    "s3://bucket:80/x",
    "s3://Bucket/x",
    "s3://b/x",
    "s3://bucket..name/x",
    "s3://-bucket/x",
    "S3://bucket/x",
    "file:///etc",
    "file:///etc/passwd.pth",
    "http://169.254.169.254",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "https://example.com/x.pth",
    "ftp://example.com/x",
    "gs://bucket/x",
    "//169.254.169.254/share",
    "\\\\169.254.169.254\\share",
]


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def everything(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("*")}


ARGUMENTS = [
    ("train", "train_dataset"), ("train", "eval_dataset"), ("train", "results_dir"), ("train", "checkpoint"),
    ("train", "pretrained_weights"), ("evaluate", "checkpoint"), ("gen_trt_engine", "onnx_file"),
    ("inference", "inference_dataset"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("action", "argument", "text"),
    [
        (action, argument, text)
        for action, argument in ARGUMENTS
        for text in HOSTILE
        if not (argument == "results_dir" and text.startswith("//"))  # a path of this machine, which may be written
    ],
)
def test_it_is_refused_without_asking_anybody(
    action: str, argument: str, text: str, workshop: Any, data: Path, nobody_is_asked: None, tmp_path: Path
) -> None:
    before = everything(workshop.home)
    arguments = {"eval_dataset": str(data / "shop")} if action == "evaluate" else {}
    if action == "train":
        arguments = {"train_dataset": str(data / "shop")}
    if action == "inference":
        arguments = {"parent_job_id": "train-aaaa1111"}
    with pytest.raises(Mask2FormerError) as raised:
        workshop.plan(action, **{**arguments, argument: text})
    assert raised.value.fix
    said = f"{raised.value.message} {raised.value.fix}"
    assert _backslashes_once(text[:60].rstrip("/")) in _backslashes_once(said)
    assert everything(workshop.home) == before


def _backslashes_once(text: str) -> str:
    return text.replace("\\\\", "\\")


@pytest.mark.parametrize("text", ["s3://bucket", "s3://bucket/"])
def test_results_do_not_go_into_the_root_of_a_bucket(text: str, workshop: Any, data: Path) -> None:
    with pytest.raises(InvalidRequest, match="whole bucket"):
        workshop.plan("train", train_dataset=str(data / "shop"), results_dir=text)


def test_results_in_s3_are_planned_without_asking_anybody(workshop: Any, data: Path, nobody_is_asked: None) -> None:
    made: Plan = workshop.plan("train", train_dataset=str(data / "shop"), results_dir="s3://bucket/runs/one/")
    assert made.results_dir == "s3://bucket/runs/one"
    assert not [warning for warning in made.warnings if "cannot start" in warning]


def test_results_do_not_go_among_the_data() -> None:
    data = {"train": {"uri": "s3://bucket/data"}}
    with pytest.raises(InvalidRequest, match="lies in the train dataset"):
        place.refuse_among_data("s3://bucket/data/results", data)
    place.refuse_among_data("s3://bucket/data-results", data)
    place.refuse_among_data("s3://other/data/results", data)


@pytest.mark.parametrize("text", ["s3://bucket/a/b", "s3://my.bucket-1/prefix with space/ü", "s3://bucket"])
def test_ordinary_uris_come_back_as_they_were(text: str) -> None:
    assert str(Uri.parse(text)) == text
    assert str(Uri.parse(f"{text}/")) == text
