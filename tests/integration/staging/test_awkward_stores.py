"""Stores that throttle, refuse, encrypt or lie: a scripted server speaks S3's XML, boto3 is the real one."""

import hashlib
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.sax.saxutils import escape

import pytest

from mask2former_mcp.datasets import check
from mask2former_mcp.datasets.reference import DatasetRef
from mask2former_mcp.errors import DatasetError, NotAvailable, NotReady
from mask2former_mcp.staging import mirror, s3, state, transfer, upload
from mask2former_mcp.staging.s3 import Object
from mask2former_mcp.staging.uri import Uri

Answer = tuple[int, dict[str, str], bytes]
CONTENT = b"what the store holds"


def error(status: int, code: str) -> Answer:
    return status, {}, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


def found(content: bytes, **headers: str) -> Answer:
    etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return 200, {"ETag": f'"{etag}"', "Last-Modified": "Tue, 24 Nov 2026 00:00:00 GMT", **headers}, content


def listing(*keys: str) -> Answer:
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-24T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{'0' * 32}&quot;</ETag><Size>3</Size></Contents>"
        for key in keys
    )
    return 200, {}, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def test_a_store_that_throttles_is_asked_again(scripted: Any, tmp_path: Path) -> None:
    refusals = iter([error(503, "SlowDown"), error(500, "InternalError")])
    asked = scripted(lambda method, _: next(refusals, None) or found(CONTENT) if method == "GET" else found(CONTENT))
    transfer.download(s3.look(Uri("data", "x")), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert len([line for line in asked if line.startswith("GET")]) == 3


def test_a_store_that_only_throttles_is_told_in_the_end(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_ATTEMPTS", 2)
    asked = scripted(lambda *_: error(503, "SlowDown"))
    with pytest.raises(NotReady, match="s3://data/x: the store is busy"):
        s3.look(Uri("data", "x"))
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("act", "permission"),
    [
        (lambda: s3.look(Uri("data", "a/x.pth")), "s3:GetObject"),
        (lambda: state.read(Uri("data", "a")), "s3:ListBucket"),
        (lambda: upload.put(b"x", Uri("data", "a/x.pth")), "s3:PutObject"),
    ],
)
def test_a_denial_names_the_uri_and_the_missing_permission(scripted: Any, act: Any, permission: str) -> None:
    scripted(lambda *_: error(403, "AccessDenied"))
    with pytest.raises(NotAvailable, match=f"s3://data/a.*lack {permission}") as raised:
        act()
    assert raised.value.details["permission"] == permission


def test_a_denied_upload_in_parts_names_the_permission_too(scripted: Any, tmp_path: Path) -> None:
    scripted(lambda *_: error(403, "AccessDenied"))
    (tmp_path / "large").write_bytes(bytes(upload.PART + 1))
    with pytest.raises(NotAvailable, match=r"s3://data/large: access denied.*s3:PutObject"):
        upload.send(tmp_path / "large", Uri("data", "large"))


def test_an_object_encrypted_with_a_key_is_not_compared_with_its_etag(scripted: Any, tmp_path: Path) -> None:
    keyed = {"x-amz-server-side-encryption": "aws:kms", "ETag": f'"{"ab" * 16}"'}
    scripted(lambda *_: found(CONTENT, **keyed))
    transfer.download(s3.look(Uri("data", "x")), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ["ab" * 16, f"{'ab' * 16}-3"], ids=["whole", "in parts"])
def test_nor_is_it_by_a_process_that_finds_all_of_it_fetched(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etag: str
) -> None:
    monkeypatch.setattr(transfer, "RANGE", 2 << 20)
    keyed = {"x-amz-server-side-encryption": "aws:kms", "ETag": f'"{etag}"'}
    asked = scripted(lambda *_: found(bytes(3 << 20), **keyed))
    source = s3.look(Uri("data", "x"))
    with monkeypatch.context() as dying:
        dying.setattr(Path, "replace", Mock(side_effect=OSError("died before the rename")))
        with pytest.raises(OSError, match="died"):
            transfer.download(source, tmp_path / "x")
    asked.clear()
    transfer.download(source, tmp_path / "x")
    assert [line for line in asked if line.startswith("GET")] == []
    assert (tmp_path / "x").read_bytes() == bytes(3 << 20)


def test_bytes_that_do_not_have_their_checksum_are_not_kept(scripted: Any, tmp_path: Path) -> None:
    scripted(lambda *_: found(CONTENT, ETag=f'"{"ab" * 16}"'))
    with pytest.raises(DatasetError, match="checksum"):
        transfer.download(s3.look(Uri("data", "x")), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


HOSTILE_KEYS = ["set/../../etc/passwd", "set//etc/passwd", "set/..", "set/a/../../b", "set/.", "set/a\\..\\b",
                "set/a\x7fb", "set/" + "n" * 256, "set/a//b"]  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_a_key_that_would_land_elsewhere_is_refused_by_name(scripted: Any, tmp_path: Path, key: str) -> None:
    asked = scripted(lambda *_: listing("set/annotations.json", key))
    home = tmp_path / "home"
    with pytest.raises(DatasetError, match=r"s3://data/set: the key .* cannot be a file"):
        mirror.outline(Uri("data", "set"), home)
    assert len(asked) == 1
    assert not home.exists()


def test_a_key_that_is_a_file_and_a_folder_is_refused(scripted: Any, tmp_path: Path) -> None:
    scripted(lambda *_: listing("set/images", "set/images/a.jpg"))
    with pytest.raises(DatasetError, match="a file and a folder at once"):
        mirror.outline(Uri("data", "set"), tmp_path)


def test_names_that_the_cache_uses_itself_stay_inside_the_mirror(scripted: Any, tmp_path: Path) -> None:
    keys = [f"set/{name}" for name in (".lock", ".trim.lock", "objects/x", "folders/y.json")]
    zeros = {"ETag": f'"{"0" * 32}"'}
    scripted(lambda _, path: listing(*keys) if "list-type" in path else (200, zeros, b"abc"))
    with pytest.raises(DatasetError, match="checksum"):
        mirror.fill(Uri("data", "set"), tmp_path, [""])
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and p.read_bytes() == b"abc"]
    assert outside == []


def test_a_mute_store_does_not_keep_planning_past_its_deadline(scripted: Any, tmp_path: Path) -> None:
    release = threading.Event()

    def script(method: str, path: str) -> Answer:
        if "list-type" in path:
            return listing("set/annotations.json")
        release.wait(20)
        return error(404, "NoSuchKey")

    scripted(script)
    with pytest.raises(NotReady):
        mirror.outline(Uri("data", "set"), tmp_path, deadline_s=0.5)
    release.set()


def test_a_check_of_two_mute_prefixes_ends_by_its_deadline(scripted: Any, tmp_path: Path) -> None:
    release = threading.Event()

    def script(method: str, path: str) -> Answer:
        if "list-type" in path:
            return listing("set/annotations.json")
        release.wait(60)
        return error(404, "NoSuchKey")

    scripted(script)
    start = time.monotonic()
    with pytest.raises(NotReady):
        check.check(
            DatasetRef.parse("s3://data/set"), compare_with=DatasetRef.parse("s3://data/other"), home=tmp_path,
            deadline_s=1.0,
        )  # fmt: skip
    assert time.monotonic() - start < 20
    release.set()


def test_the_permission_to_list_is_not_needed_for_a_named_object(scripted: Any, tmp_path: Path) -> None:
    def script(_: str, path: str) -> Answer:
        return found(CONTENT) if path.endswith("model.pth") else error(403, "AccessDenied")

    scripted(script)
    place = mirror.outline(Uri("data", "a"), tmp_path, only=("model.pth", "experiment.yaml"))
    assert (place / "model.pth").stat().st_size == len(CONTENT)
    assert mirror.fill(Uri("data", "a"), tmp_path, [""], only=("model.pth", "experiment.yaml")) == place
    assert (place / "model.pth").read_bytes() == CONTENT


def test_an_object_carries_its_version(scripted: Any) -> None:
    scripted(lambda *_: found(CONTENT, **{"x-amz-version-id": "v7"}))
    etag = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert s3.look(Uri("data", "x")) == Object(Uri("data", "x"), etag, len(CONTENT), "v7")
