"""A file that is fetched takes the place of its outline, whole, whatever the file system can do."""

import ctypes
from pathlib import Path

import pytest

from mask2former_mcp.staging import cache


@pytest.mark.parametrize("swaps", [True, False], ids=["files swapped", "file replaced"])
def test_a_whole_file_takes_the_place_of_an_outline(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:  # as on macOS, and on file systems that cannot
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
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
