"""A file that is fetched takes the place of its outline, whole, whatever the file system can do."""

import ctypes
import os
from pathlib import Path

import pytest

from mask2former_mcp.staging import cache, transfer
from mask2former_mcp.staging.cache import Cache
from mask2former_mcp.staging.s3 import Object
from mask2former_mcp.staging.uri import Uri


def can_swap(folder: Path) -> bool:
    """Whether this system and this file system let two files change places."""
    names = [os.fsencode(folder / name) for name in ("one", "other")]
    for name in names:
        Path(os.fsdecode(name)).touch()
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    done = swap is not None and swap(here, names[0], here, names[1], exchange) == 0
    for name in names:
        os.unlink(name)
    return done


@pytest.mark.parametrize("swaps", [True, False], ids=["files swapped", "file replaced"])
def test_a_whole_file_takes_the_place_of_an_outline(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:  # as on macOS, and on file systems that cannot
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    elif can_swap(tmp_path):
        monkeypatch.delattr(Path, "replace")
    place, target = tmp_path / "kept", tmp_path / "outline.json"
    place.write_text("all of it")
    target.write_text("")
    with target.open(encoding="utf-8") as reader:  # of a job that began with the outline
        cache._replace(place, target)
        assert reader.read() == ""
    assert target.read_text() == "all of it"
    assert target.samefile(place)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", "outline.json"]
    cache._replace(place, target)  # once more, by another job
    assert target.read_text() == "all of it"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", "outline.json"]


def test_what_a_broken_transfer_has_brought_needs_no_room_again(tmp_path: Path) -> None:
    known, size = Cache(tmp_path), transfer.RANGE + (1 << 20)
    source = Object(Uri("data", "large"), "etag", size)
    assert known.missing(source) == size
    part = known._place(source).with_name(f"{known._place(source).name}.part")
    part.parent.mkdir(parents=True)
    with part.open("wb") as file:
        file.write(b"x" * (1 << 20))
        file.truncate(size)  # as ranges that come in any order leave it: long, and mostly a hole
    assert known.missing(source) == pytest.approx(size - (1 << 20), abs=1 << 16)
    part.write_bytes(b"x" * size)
    assert known.missing(source) == 0
