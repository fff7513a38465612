"""Objects that were written in parts have an ETag of the parts' MD5s, compared where the store tells the parts."""

import hashlib
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import DatasetError
from mask2former_mcp.staging import s3, transfer
from mask2former_mcp.staging.uri import Uri

MIB = 1 << 20
CONTENT = os.urandom(5 * MIB)
EVEN, UNEVEN, WHOLE = [2 * MIB, 2 * MIB, MIB], [MIB, 3 * MIB, MIB], [5 * MIB]
Script = Callable[[str, str], tuple[int, dict[str, str], bytes]]


def etag(parts: list[int]) -> str:
    ends = [sum(parts[:count]) for count in range(len(parts) + 1)]
    digests = [hashlib.md5(CONTENT[a:b], usedforsecurity=False).digest() for a, b in pairwise(ends)]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(parts)}"


def serve(parts: list[int], *, tells: bool | None, content: Callable[[], bytes] = lambda: CONTENT) -> Script:
    """A store of one object. `tells` the parts' sizes when it is asked for one; None: such a request is an error."""

    def script(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        headers = {"ETag": f'"{etag(parts)}"', "Last-Modified": "Tue, 24 Nov 2026 00:00:00 GMT"}
        if "partNumber=" in path and tells is None:
            return 501, {}, b""
        if "partNumber=" in path and tells:
            headers["Content-Length"] = str(parts[int(path.partition("partNumber=")[2].partition("&")[0]) - 1])
        return 200, headers, content() if method == "GET" else CONTENT

    return script


def flipped(*places: int) -> bytes:
    wrong = bytearray(CONTENT)
    for at in places or (-1,):
        wrong[at] ^= 1
    return bytes(wrong)


@pytest.fixture(params=[1, 4, 16])
def range_mib(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Ranges inside a part, ranges of several parts, and everything in one request."""
    monkeypatch.setattr(transfer, "RANGE", request.param * MIB)
    return int(request.param)


@pytest.mark.parametrize("parts", [EVEN, UNEVEN, WHOLE])
@pytest.mark.parametrize("tells", [True, False, None])
def test_it_arrives_whatever_its_parts_and_the_store_says_of_them(
    scripted: Any, tmp_path: Path, range_mib: int, parts: list[int], tells: bool | None
) -> None:
    scripted(serve(parts, tells=tells))
    transfer.download(s3.look(Uri("data", "x")), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(("parts", "tells"), [(EVEN, True), (WHOLE, True), (WHOLE, None)])
def test_a_wrong_byte_is_found(
    scripted: Any, tmp_path: Path, range_mib: int, parts: list[int], tells: bool | None
) -> None:
    scripted(serve(parts, tells=tells, content=flipped))
    with pytest.raises(DatasetError, match="checksum"):
        transfer.download(s3.look(Uri("data", "x")), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_where_the_parts_are_a_guess_bytes_that_differ_each_time_are_damage(
    scripted: Any, tmp_path: Path, range_mib: int
) -> None:
    offsets = iter(range(100))  # one in each range, whichever is asked for first
    scripted(serve(EVEN, tells=False, content=lambda: flipped(*range(next(offsets), len(CONTENT), MIB))))
    with pytest.raises(DatasetError, match="checksum"):
        transfer.download(s3.look(Uri("data", "x")), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_where_the_parts_are_a_guess_the_right_bytes_the_second_time_are_taken(
    scripted: Any, tmp_path: Path, range_mib: int
) -> None:
    first = -(-5 // range_mib)
    answers = iter([flipped(2 * MIB)] * first)
    scripted(serve(EVEN, tells=False, content=lambda: next(answers, CONTENT)))
    transfer.download(s3.look(Uri("data", "x")), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_large_part_comes_in_ranges_and_goes_on_where_it_was_stopped(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RANGE", MIB)
    monkeypatch.setattr(s3, "THREADS", 1)
    asked = scripted(serve(WHOLE, tells=None))
    source, arrived = s3.look(Uri("data", "x")), 0

    def stop(more: int) -> None:
        nonlocal arrived
        arrived += more
        if arrived > 3 * MIB:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        transfer.download(source, tmp_path / "x", progress=stop)
    asked.clear()
    transfer.download(source, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert asked == ["GET /data/x"] * 2
