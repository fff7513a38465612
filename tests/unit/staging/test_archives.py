"""Archives become folders safely, once, whole or not at all."""

import io
import multiprocessing
import queue
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mask2former_mcp.errors import DatasetError
from mask2former_mcp.staging import archives, durable
from mask2former_mcp.staging.archives import extract
from mask2former_mcp.staging.unpacking import Limits

FILES = {"a.jpg": b"first", "deep/b.jpg": b"second"}


def tar(path: Path, files: dict[str, bytes], mode: str = "w:gz", *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return path


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz")]
)
def test_every_kind_of_tar_is_extracted(tmp_path: Path, suffix: str, mode: str) -> None:
    target = extract(tar(tmp_path / f"images{suffix}", FILES, mode), tmp_path / "out" / "images")
    assert content(target) == FILES
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == ["images"]


def test_a_zip_is_extracted(tmp_path: Path) -> None:
    assert content(extract(zipped(tmp_path / "x.zip", FILES), tmp_path / "x")) == FILES


def test_a_single_root_is_taken_off_but_not_below_what_is_expected(tmp_path: Path) -> None:
    nested = {f"data/train2017/{name}": text for name, text in {"a.jpg": b"1", "b.jpg": b"2"}.items()}
    archive = tar(tmp_path / "x.tar.gz", {**nested, "__MACOSX/._a": b"", "data/.DS_Store": b"", "._x": b""})
    assert set(content(extract(archive, tmp_path / "flat"))) == {"a.jpg", "b.jpg"}
    kept = extract(archive, tmp_path / "kept", expects="train2017/a.jpg")
    assert set(content(kept)) == {"train2017/a.jpg", "train2017/b.jpg"}


def link(name: str, kind: bytes, target: str = "a.jpg") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def folder(number: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"{number}")
    info.type = tarfile.DIRTYPE
    return info


@pytest.mark.parametrize(
    ("files", "members", "name", "reason"),
    [
        ({"../evil.jpg": b"x"}, (), "../evil.jpg", "leaves the folder"),
        ({"a/../../evil.jpg": b"x"}, (), "a/../../evil.jpg", "leaves the folder"),
        ({"/etc/evil": b"x"}, (), "/etc/evil", "absolute"),
        ({"C:/evil": b"x"}, (), "C:/evil", "absolute"),
        ({"a\\..\\evil": b"x"}, (), "a\\..\\evil", "not portable"),
        ({}, (link("soft", tarfile.SYMTYPE, "/etc/passwd"),), "soft", "a link"),
        ({}, (link("hard", tarfile.LNKTYPE),), "hard", "a link"),
        ({}, (link("pipe", tarfile.FIFOTYPE),), "pipe", "device"),
        ({}, (link("disk", tarfile.BLKTYPE),), "disk", "device"),
        ({}, (link("tty", tarfile.CHRTYPE),), "tty", "device"),
    ],
)  # fmt: skip
def test_a_dangerous_member_is_refused_by_name_and_nothing_stays(
    tmp_path: Path, files: dict[str, bytes], members: tuple[tarfile.TarInfo, ...], name: str, reason: str
) -> None:
    archive = tar(tmp_path / "x.tar.gz", {"ok.jpg": b"fine", **files}, "w:gz", *members)
    with pytest.raises(DatasetError) as caught:
        extract(archive, tmp_path / "out" / "x")
    assert f"'{name}'" in caught.value.message
    assert reason in caught.value.message
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".x.lock"]
    assert not (tmp_path / "evil.jpg").exists()


def test_a_link_in_a_zip_and_a_zip_that_climbs_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("soft")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DatasetError, match=r"'soft'.*link"):
        extract(tmp_path / "link.zip", tmp_path / "a")
    with pytest.raises(DatasetError, match="leaves the folder"):
        extract(zipped(tmp_path / "climb.zip", {"../x": b""}), tmp_path / "b")


@pytest.mark.parametrize("make", [tar, zipped])
def test_a_bomb_is_refused_by_its_member(tmp_path: Path, make: Callable[[Path, dict[str, bytes]], Path]) -> None:
    archive = make(tmp_path / ("x.zip" if make is zipped else "x.tar.gz"), {"ok": b"1", "zeros.png": bytes(3 << 20)})
    with pytest.raises(DatasetError, match=r"'zeros\.png'.*bomb"):
        extract(archive, tmp_path / "x", limits=Limits(ratio=50, ratio_from_bytes=1 << 20))
    assert not (tmp_path / "x").exists()


def test_a_member_that_lies_about_its_size_is_refused_all_the_same(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge.png")
    info.size = 1 << 50
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(DatasetError, match=r"'huge\.png'"):
        extract(path, tmp_path / "x")


def test_too_many_members_and_a_full_disk_are_refused(tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar", {f"{i}.jpg": b"1" for i in range(9)}, "w")
    with pytest.raises(DatasetError, match="more than 5 files"):
        extract(archive, tmp_path / "a", limits=Limits(members=5))
    with pytest.raises(DatasetError, match="room"):
        extract(archive, tmp_path / "b", limits=Limits(keep_free_bytes=1 << 60))


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar", {"a.jpg": b"1", "./a.jpg": b"2"}, "w")
    with pytest.raises(DatasetError, match="same name"):
        extract(archive, tmp_path / "x")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"no archive", lambda b: b""])
def test_a_damaged_archive_says_so_and_leaves_nothing(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    archive = tar(tmp_path / "x.tar.gz", {"a": bytes(range(256)) * 400})
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DatasetError, match=r"x\.tar\.gz"):
        extract(archive, tmp_path / "out" / "x")
    assert not (tmp_path / "out" / "x").exists()


def with_long_header(path: Path) -> Path:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"comment": "0" * (100 << 20)}
        archive.addfile(info)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_long_header, "a header after it is larger than 2 MiB"),
        (lambda path: tar(path, {"__MACOSX/x": bytes(100 << 20), "a.jpg": b"1"}), "'__MACOSX/x' is refused.*bomb"),
        (lambda path: tar(path, {"a.jpg": b"1"}, "w:gz", *map(folder, range(9000))), "more than 1500 files"),
        (lambda path: tar(path, {f"__MACOSX/{i}": b"" for i in range(9000)}), "more than 1500 files"),
        (lambda path: zipped(path, {f"{'long' * 30}/{i}": b"" for i in range(15000)}), "table of contents"),
        (lambda path: zipped(path, {"a.jpg": b"1"}, zipfile.ZIP_BZIP2), "'a.jpg'.*another method"),
    ],
)  # fmt: skip
def test_what_grows_outside_of_files_is_refused_early(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    archive = make(tmp_path / "x")
    tracemalloc.start()
    with pytest.raises(DatasetError, match=reason):
        extract(archive, tmp_path / "out", limits=Limits(ratio=2, ratio_from_bytes=1 << 20, members=1500))
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()
    assert not (tmp_path / "out").exists()


def test_a_zip_of_as_many_files_as_allowed_may_have_long_paths(tmp_path: Path) -> None:
    deep = f"{'a' * 200}/{'b' * 200}"
    archive = zipped(tmp_path / "x.zip", {f"{deep}/{i}.jpg": b"" for i in range(4800)})
    target = extract(archive, tmp_path / "x", limits=Limits(members=4800))
    assert sum(path.is_file() for path in target.rglob("*")) == 4800


def test_what_is_thrown_away_can_be_stopped_as_well(tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar.gz", {"__MACOSX/x": bytes(8 << 20)})

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(archive, tmp_path / "x", progress=stop)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zip"])
def test_flipped_bytes_are_found_wherever_they_are(tmp_path: Path, suffix: str) -> None:
    noise = random.Random(4711)
    files = {f"{i}.jpg": noise.randbytes(3000) for i in range(20)}
    archive = tmp_path / f"x.{suffix}"
    zipped(archive, files) if suffix == "zip" else tar(archive, files, f"w:{suffix}")
    whole = archive.read_bytes()
    for tenth in range(1, 10):
        damaged = bytearray(whole)
        for place in range(len(whole) * tenth // 10, len(whole) * tenth // 10 + 8):
            damaged[place] ^= 0x55
        archive.write_bytes(damaged)
        with pytest.raises(DatasetError, match=rf"x\.{suffix}"):
            extract(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar", {"a.jpg": b"1", "b.jpg": b"2"}, "w")
    content = bytearray(archive.read_bytes())
    content[1024 + 10] ^= 0x55  # in the header of b.jpg
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match="a header is damaged"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a", "a/b/c"), ("a/b", "a")])
def test_a_member_that_is_a_file_and_a_folder_is_named(tmp_path: Path, names: tuple[str, str]) -> None:
    archive = tar(tmp_path / "x.tar", dict.fromkeys(names, b"1"), "w")
    with pytest.raises(DatasetError, match=f"'{names[1]}' is refused: another member has the same name"):
        extract(archive, tmp_path / "x")


def test_what_had_not_reached_the_disk_at_a_power_cut_is_extracted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_work", queue.SimpleQueue)  # nobody brings it to the disk
    archive = tar(tmp_path / "x.tar.gz", FILES)
    (extract(archive, tmp_path / "x") / "a.jpg").write_bytes(b"")
    assert (extract(archive, tmp_path / "x") / "a.jpg").read_bytes() == b"", "in the same boot it is trusted"
    monkeypatch.setattr(durable, "boot", lambda: "another boot")
    assert content(extract(archive, tmp_path / "x")) == FILES


def test_an_archive_without_files_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no files"):
        extract(tar(tmp_path / "empty.tar", {}, "w"), tmp_path / "a")
    with pytest.raises(DatasetError, match="cannot be read"):
        extract(tmp_path / "none.tar", tmp_path / "b")


def test_a_stop_in_the_middle_leaves_nothing_and_the_next_run_is_whole(tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar.gz", FILES)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(archive, tmp_path / "x", progress=stop)
    assert not (tmp_path / "x").exists()
    (tmp_path / ".x.part").mkdir()  # as a killed process leaves it
    assert content(extract(archive, tmp_path / "x")) == FILES


def test_the_work_is_done_once_by_however_many_processes(tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar.gz", {f"{i}.jpg": bytes(2000) for i in range(200)})
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        inodes = pool.starmap(_extracted_inode, [(archive, tmp_path / "x")] * 4)
    assert len(set(inodes)) == 1
    assert len(content(tmp_path / "x")) == 200


def _extracted_inode(archive: Path, target: Path) -> int:
    return (extract(archive, target) / "0.jpg").stat().st_ino


def test_a_changed_archive_has_another_place_in_the_cache(tmp_path: Path) -> None:
    archive = tar(tmp_path / "images_panoptic.tar.gz", FILES)
    before = archives.cache_place(archive)
    assert before.startswith("cache/archives/")
    assert before.endswith("/images_panoptic")
    tar(archive, {"other": b"files"})
    assert archives.cache_place(archive) != before
