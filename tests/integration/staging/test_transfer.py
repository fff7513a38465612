"""Objects come whole, once, and go on where a broken transfer stopped."""

import io
import json
import multiprocessing
import os
import queue
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from mask2former_mcp.errors import DatasetError, NotAvailable, NotFound, NotReady
from mask2former_mcp.staging import archives, durable, eviction, mirror, s3, state, transfer, upload
from mask2former_mcp.staging.cache import Cache
from mask2former_mcp.staging.eviction import Bound
from mask2former_mcp.staging.uri import Uri


def put(store: Any, key: str, content: bytes) -> Uri:
    client = store.client()
    if not (store.folder / "data").exists():
        client.create_bucket(Bucket="data")
    client.put_object(Bucket="data", Key=key, Body=content)
    return Uri("data", key)


@pytest.fixture(scope="module")
def large() -> bytes:
    return os.urandom(40 << 20)


def test_small_object_arrives(store: Any, tmp_path: Path) -> None:
    uri = put(store, "a/b.json", b"{}")
    transfer.download(s3.look(uri), tmp_path / "b.json")
    assert (tmp_path / "b.json").read_bytes() == b"{}"


def test_empty_object_arrives(store: Any, tmp_path: Path) -> None:
    transfer.download(s3.look(put(store, "empty", b"")), tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_large_object_arrives_in_ranges_with_progress(store: Any, tmp_path: Path, large: bytes) -> None:
    seen: list[int] = []
    transfer.download(s3.look(put(store, "large", large)), tmp_path / "large", progress=seen.append)
    assert (tmp_path / "large").read_bytes() == large
    assert sum(seen) == len(large)
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_a_cut_transfer_goes_on_at_the_byte_where_it_was_cut(
    store: Any, cutting: Any, tmp_path: Path, large: bytes
) -> None:
    uri = put(store, "large", large)
    cutting.cuts = 3
    cutting.sent = 0
    transfer.download(s3.look(uri), tmp_path / "large")
    assert cutting.cuts == 0
    assert (tmp_path / "large").read_bytes() == large
    assert cutting.sent < len(large) * 1.2  # nothing was fetched again


def test_a_killed_transfer_resumes_from_its_finished_ranges(
    store: Any, cutting: Any, tmp_path: Path, large: bytes
) -> None:
    source = s3.look(put(store, "large", large))

    class Killed(Exception):
        pass

    done = 0

    def stop(more: int) -> None:
        nonlocal done
        done += more
        if done > 36 << 20:
            raise Killed

    with pytest.raises(Killed):
        transfer.download(source, tmp_path / "large", progress=stop)
    assert not (tmp_path / "large").exists()
    ranges = len((tmp_path / "large.part.journal").read_text().splitlines()) - 1
    cutting.sent = 0
    transfer.download(source, tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == large
    assert ranges >= 1
    assert cutting.sent < len(large) - ranges * (7 << 20)


def test_a_journal_of_another_state_is_not_trusted(store: Any, tmp_path: Path, large: bytes) -> None:
    old = s3.look(put(store, "large", large))
    (tmp_path / "large.part").write_bytes(bytes(len(large)))
    (tmp_path / "large.part.journal").write_text(
        f'["{old.uri}", "other", {old.size}, {transfer.RANGE}]\n0 {"0" * 32}\n'
    )
    transfer.download(old, tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == large


def test_a_damaged_part_file_fails_the_checksum_and_is_not_kept(store: Any, tmp_path: Path, large: bytes) -> None:
    source = s3.look(put(store, "large", large))
    (tmp_path / "large.part").write_bytes(bytes(len(large)))
    head = f'["{source.uri}", "{source.etag}", {source.size}, {transfer.RANGE}]'
    (tmp_path / "large.part.journal").write_text(f"{head}\n0 {'0' * 32}\n")
    with pytest.raises(DatasetError, match="checksum"):
        transfer.download(source, tmp_path / "large")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_sent_in_parts_arrives_whole(store: Any, cutting: Any, tmp_path: Path, large: bytes) -> None:
    put(store, "other", b"")
    (tmp_path / "model.pth").write_bytes(large)
    assert upload.send(tmp_path / "model.pth", Uri("data", "model.pth"))
    assert (store.folder / "data" / "model.pth").read_bytes() == large
    parts = [line for line in cutting.asked if line.startswith("PUT /data/model.pth?") and "partNumber=" in line]
    assert len(parts) == 3
    transfer.download(s3.look(Uri("data", "model.pth")), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large


@pytest.mark.parametrize("secret", ['a"quoted\\key', "schlüssel-4711", "plain"])
def test_a_secret_is_found_as_json_writes_it(store: Any, tmp_path: Path, secret: str) -> None:
    put(store, "other", b"")
    forms = upload.written(secret)
    for name, content in {"status.json": json.dumps({"key": secret}), "log.txt": f"the key is {secret}"}.items():
        (tmp_path / name).write_text(content)
        assert upload.send(tmp_path / name, Uri("data", name), forms)
        sent = (store.folder / "data" / name).read_bytes()
        assert b"***" in sent
        assert not [form for form in forms if form in sent]
    (tmp_path / "model.pth").write_bytes(bytes(5) + forms[-1])
    assert not upload.send(tmp_path / "model.pth", Uri("data", "model.pth"), forms)


def test_two_processes_that_fill_one_mirror_ask_for_each_object_once(
    store: Any, cutting: Any, tmp_path: Path, large: bytes
) -> None:
    put(store, "set/large.bin", large)
    for number in range(40):
        put(store, f"set/images/{number}.jpg", os.urandom(2000))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_nothing, range(2), chunksize=1)
        cutting.asked.clear()
        one, two = pool.map(_filled, [tmp_path, tmp_path], chunksize=1)
    assert one == two
    assert len(list((one / "images").iterdir())) == 40
    asked = cutting.objects("data")
    assert len([path for path in asked if path.endswith(".jpg")]) == 40
    assert len([path for path in asked if path.endswith("large.bin")]) == 3, "its ranges"


def _nothing(_: int) -> None:
    """So that both processes have started before either has work."""
    time.sleep(0.2)


def _filled(home: Path) -> Path:
    return mirror.fill(Uri("data", "set"), home, [""])


def test_an_object_is_fetched_once_for_everybody(store: Any, cutting: Any, tmp_path: Path, large: bytes) -> None:
    source, cache = s3.look(put(store, "large", large)), Cache(tmp_path / "cache")
    cache.link(source, tmp_path / "one")
    cutting.sent = 0
    cache.link(source, tmp_path / "two")
    assert cutting.sent == 0
    assert (tmp_path / "two").read_bytes() == large
    assert os.path.samefile(tmp_path / "one", tmp_path / "two")


def sets(store: Any, home: Path, count: int, size: int = 100_000) -> list[Path]:
    """Filled mirrors of datasets of one size, used in this order, long ago."""
    places = []
    for number in range(count):
        put(store, f"set{number}/images/a.jpg", os.urandom(size))
        places.append(mirror.fill(Uri("data", f"set{number}"), home, [""]))
        os.utime(places[-1], (number, number))
    return places


def on_disk(home: Path) -> int:
    files = [path.lstat() for path in (home / "cache" / "s3").rglob("*") if path.is_file()]
    return sum({status.st_ino: status.st_blocks * 512 for status in files}.values())


def test_the_bound_holds_although_mirrors_link_the_objects(store: Any, tmp_path: Path) -> None:
    oldest, older, young = sets(store, tmp_path, 3)
    freed = eviction.trim(tmp_path, Bound(250_000, frozenset))
    assert freed >= 100_000
    assert on_disk(tmp_path) <= 250_000
    assert [place.exists() for place in (oldest, older, young)] == [False, True, True]
    assert (young / "images" / "a.jpg").stat().st_size == 100_000


def test_what_a_live_job_reads_or_somebody_just_used_stays_whatever_the_bound(store: Any, tmp_path: Path) -> None:
    used, forgotten, fresh = sets(store, tmp_path, 3)
    os.utime(fresh)
    eviction.trim(tmp_path, Bound(0, lambda: {used.name}))
    assert [place.exists() for place in (used, forgotten, fresh)] == [True, False, True]


def test_where_nobody_knows_what_live_jobs_read_every_mirror_stays(store: Any, tmp_path: Path) -> None:
    places = sets(store, tmp_path, 2)
    assert eviction.trim(tmp_path, Bound(0, lambda: None)) == 0
    assert all(place.exists() for place in places)


def packed(size: int, name: str = "a.jpg") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = size
        archive.addfile(info, io.BytesIO(bytes(size)))
    return content.getvalue()


def extracted(place: Path, home: Path) -> Path:
    archive = place / "images.tar.gz"
    return archives.extract(archive, home / archives.cache_place(archive))


def test_an_archive_keeps_its_place_while_its_bytes_are_the_same(store: Any, tmp_path: Path) -> None:
    content = packed(1000)
    put(store, "set/images.tar.gz", content)
    put(store, "set/annotations.json", b"{}")
    planned = archives.cache_place(mirror.outline(Uri("data", "set"), tmp_path) / "images.tar.gz")
    first = mirror.fill(Uri("data", "set"), tmp_path, [""])
    assert archives.cache_place(first / "images.tar.gz") == planned
    time.sleep(1.1)  # LastModified has seconds
    put(store, "set/images.tar.gz", content)
    put(store, "set/annotations.json", b'{"repaired": true}')
    second = mirror.fill(Uri("data", "set"), tmp_path, [""])
    assert second != first
    assert archives.cache_place(second / "images.tar.gz") == planned
    assert archives.cache_place(first / "images.tar.gz") == planned, "of the first job, which may be resumed"
    here = extracted(first, tmp_path)
    os.utime(first, (0, 0))
    eviction.trim(tmp_path, Bound(0, frozenset))
    assert [place.exists() for place in (first, second, here)] == [False, True, True]


def test_what_was_extracted_counts_and_goes_with_its_mirror(store: Any, tmp_path: Path) -> None:
    put(store, "set/images.tar.gz", packed(300_000))
    place = mirror.fill(Uri("data", "set"), tmp_path, [""])
    here = extracted(place, tmp_path)
    half = here.parent.parent / "killed" / ".images.part"
    half.mkdir(parents=True)
    os.utime(place, (0, 0))
    assert eviction.trim(tmp_path, Bound(200_000, frozenset)) >= 300_000
    assert [path.exists() for path in (place, here, half)] == [False, False, False]


def test_room_is_made_before_a_dataset_is_fetched(store: Any, tmp_path: Path) -> None:
    old, _ = sets(store, tmp_path, 2)
    put(store, "new/images/a.jpg", bytes(100_000))
    mirror.fill(Uri("data", "new"), tmp_path, [""], bound=Bound(250_000, frozenset))
    assert not old.exists()
    assert on_disk(tmp_path) <= 250_000


def test_an_evicted_dataset_is_fetched_again_when_it_is_needed(store: Any, tmp_path: Path) -> None:
    (gone,) = sets(store, tmp_path, 1)
    eviction.trim(tmp_path, Bound(0, frozenset))
    assert not gone.exists()
    assert mirror.fill(Uri("data", "set0"), tmp_path, [""], expected=gone.name) == gone
    assert (gone / "images" / "a.jpg").stat().st_size == 100_000


def test_what_a_power_cut_left_of_an_object_is_not_trusted(store: Any, tmp_path: Path) -> None:
    source, cache = s3.look(put(store, "x", b"content")), Cache(tmp_path / "cache")
    cache.fetch(source).write_bytes(b"")
    assert cache.fetch(source).read_bytes() == b"content"


def test_what_had_not_reached_the_disk_at_a_power_cut_is_fetched_again(
    store: Any, tmp_path: Path, large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_work", queue.SimpleQueue)  # nobody brings it to the disk
    put(store, "set/large.bin", large)
    place = mirror.fill(Uri("data", "set"), tmp_path, [""])
    with (place / "large.bin").open("r+b") as file:
        file.write(bytes(1 << 20))  # a hole, the size unchanged
    assert mirror.fill(Uri("data", "set"), tmp_path, [""], expected=place.name) == place
    assert (place / "large.bin").read_bytes() != large, "in the same boot it is trusted"
    monkeypatch.setattr(durable, "boot", lambda: "another boot")
    assert mirror.fill(Uri("data", "set"), tmp_path, [""], expected=place.name) == place
    assert (place / "large.bin").read_bytes() == large


def test_what_has_reached_the_disk_is_trusted_in_every_boot(
    store: Any, cutting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "set/a.bin", b"content")
    place = mirror.fill(Uri("data", "set"), tmp_path, [""])
    marks = list(place.parent.glob(f".{place.name}.filled.*"))
    end = time.monotonic() + 50  # a busy disk
    while {mark.read_text() for mark in marks} != {"kept"}:
        assert time.monotonic() < end
        time.sleep(0.05)
    monkeypatch.setattr(durable, "boot", lambda: "another boot")
    cutting.asked.clear()
    assert mirror.fill(Uri("data", "set"), tmp_path, [""], expected=place.name) == place
    assert cutting.asked == []


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (Uri("data", "no/such"), ["s3://data/no/such", "does not exist"]),
        (Uri("nobucket-here", "x"), ["s3://nobucket-here/x", "the bucket does not exist"]),
    ],
)
def test_what_is_missing_is_named(store: Any, uri: Uri, words: list[str]) -> None:
    put(store, "x", b"")
    with pytest.raises(NotFound) as raised:
        s3.look(uri)
    assert all(word in raised.value.message for word in words)


def test_a_missing_bucket_is_named_by_a_listing(store: Any) -> None:
    with pytest.raises(NotFound, match="the bucket does not exist"):
        state.read(Uri("nobucket-here", "x"))


def test_wrong_credentials_are_told_apart(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "x", b"")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3.client.cache_clear()
    with pytest.raises(NotAvailable) as raised:
        state.read(Uri("data", "x"))
    assert "credentials" in raised.value.message


def test_no_credentials_are_told_apart(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    s3.client.cache_clear()
    with pytest.raises(NotAvailable, match="no S3 credentials"):
        s3.look(Uri("data", "x"))


def test_a_store_that_does_not_answer_is_named(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)
    s3.client.cache_clear()
    with pytest.raises(NotAvailable, match="does not answer"):
        s3.look(Uri("data", "x"))


def test_an_outline_reads_only_annotations(store: Any, tmp_path: Path) -> None:
    put(store, "set/annotations.json", b'{"images": []}')
    put(store, "set/images/a.jpg", b"pixels")
    put(store, "set/images_panoptic.tar.gz", b"packed")
    place = mirror.outline(Uri("data", "set"), tmp_path)
    assert (place / "annotations.json").read_bytes() == b'{"images": []}'
    assert list((place / "images").iterdir()) == []
    assert (place / "images_panoptic.tar.gz").stat().st_size == 6
    filled = mirror.fill(Uri("data", "set"), tmp_path, ["images/", "images_panoptic.tar.gz"], expected=place.name)
    assert filled == place
    assert (place / "images/a.jpg").read_bytes() == b"pixels"
    assert (place / "images_panoptic.tar.gz").read_bytes() == b"packed"


def test_a_filled_mirror_asks_nobody(store: Any, cutting: Any, tmp_path: Path) -> None:
    put(store, "set/images/a.jpg", b"pixels")
    place = mirror.fill(Uri("data", "set"), tmp_path, ["images/"])
    cutting.sent = 0
    assert mirror.fill(Uri("data", "set"), tmp_path, ["images/"], expected=place.name) == place
    assert cutting.sent == 0


def test_a_changed_prefix_is_another_mirror_and_not_the_planned_one(store: Any, tmp_path: Path) -> None:
    put(store, "set/images/a.jpg", b"pixels")
    planned = mirror.outline(Uri("data", "set"), tmp_path)
    put(store, "set/images/a.jpg", b"other")
    assert mirror.outline(Uri("data", "set"), tmp_path) != planned
    with pytest.raises(DatasetError, match="has changed since the plan"):
        mirror.fill(Uri("data", "set"), tmp_path, ["images/"], expected=planned.name)


def test_reading_that_takes_too_long_is_not_ready_and_gets_on(store: Any, tmp_path: Path) -> None:
    put(store, "set/annotations.json", bytes(5 << 20))
    with pytest.raises(NotReady):
        mirror.outline(Uri("data", "set"), tmp_path, deadline_s=-1)
    assert (mirror.outline(Uri("data", "set"), tmp_path) / "annotations.json").stat().st_size == 5 << 20


def test_an_empty_prefix_is_an_error_that_names_it(store: Any, tmp_path: Path) -> None:
    put(store, "set/x", b"")
    with pytest.raises(DatasetError, match="s3://data/nothing holds nothing"):
        mirror.outline(Uri("data", "nothing"), tmp_path)
