"""Images put together by size before any is decoded, padded alike whatever lies beside them."""

import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former_mcp.engine import fast, forward_graph, photos, pictures, shared_slots
from mask2former_mcp.engine.photos import Batches, Group, Photos, Shots, grouped
from mask2former_mcp.spec.dataset import Augmentation

SETTINGS = Augmentation(test_min_size=64, test_max_size=128)


def folder(root: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(np.full((height, width, 3), 10 + i, dtype=np.uint8)).save(root / f"{i:02d}.png")
    return sorted(root.iterdir())


def test_images_of_one_size_keep_their_order_and_have_one_shape() -> None:
    assert grouped([(60, 80)] * 5, 2, grain=32) == [
        Group((0, 1), (60, 80)),
        Group((2, 3), (60, 80)),
        Group((4,), (60, 80)),
    ]


def test_other_sizes_share_batches_by_rounded_size_the_commonest_first() -> None:
    sizes = [(64, 90), (128, 64), (64, 96), None, (64, 70)]
    assert grouped(sizes, 2, grain=32) == [
        Group((0, 2), (64, 96)),
        Group((4,), (64, 96)),
        Group((1,), (128, 64)),
        Group((3,), None),
    ]
    assert [group.room for group in grouped(sizes, 2, grain=1)] == sizes


def test_sizes_come_from_the_headers_of_upright_images_at_network_size(tmp_path: Path) -> None:
    paths = folder(tmp_path, [(40, 60), (80, 120), (60, 40)])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 60)).save(tmp_path / "03.jpg", exif=turned)
    (tmp_path / "04.jpg").write_bytes(b"no image")
    found = Photos([*paths, tmp_path / "03.jpg", tmp_path / "04.jpg"], SETTINGS, None, None).groups(4, grain=32)
    assert found == [Group((0, 1, 3), (64, 96)), Group((2,), (96, 64)), Group((4,), None)]


def test_headers_are_not_read_where_nothing_depends_on_them(tmp_path: Path) -> None:
    missing = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    assert Photos(missing, SETTINGS, None, None).groups(1, grain=1) == [Group((0,), None), Group((1,), None)]
    assert Photos(missing, SETTINGS, (32, 48), None).groups(2, grain=32) == [Group((0, 1), (32, 48))]


def test_a_batch_is_padded_to_its_room_and_filled_with_blanks(tmp_path: Path) -> None:
    paths = [*folder(tmp_path, [(64, 90), (64, 96), (64, 70)]), tmp_path / "none.png"]
    whole = Photos(paths, SETTINGS, None, None)
    first, last, unread = photos.batches(whole, whole.groups(2, grain=32), 0, fill=2, pin=False)
    assert first.images.shape == last.images.shape == (2, 3, 64, 96)
    assert first.images.dtype == torch.uint8
    assert (last.indices, last.sizes, last.originals) == ([2], [(64, 70)], [(64, 70)])
    assert (last.images[0, :, :, :70] == 12).all()
    assert not last.images[0, :, :, 70:].any()
    assert not last.images[1].any()
    assert unread.indices == []
    assert unread.unreadable[0].index == 3


def test_only_one_size_is_thought_of_being_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fast.COMPILE, raising=False)
    assert forward_graph.compiling([(640, 640)] * 20_000, 8)[0]
    assert not forward_graph.compiling([(640, 640)] * 10, 8)[0]
    assert forward_graph.compiling([(640, 640), (480, 640)] * 6_000, 8) == (
        False,
        "images of 2 sizes, each of which would be compiled anew",
    )
    monkeypatch.setenv(fast.COMPILE, "always")
    assert forward_graph.compiling([None], 8) == (True, "M2F_COMPILE=always")


def test_what_processes_read_into_shared_memory_is_what_is_read_here(tmp_path: Path) -> None:
    """More batches than there are slots, one of which is larger than it was said to be, one that has no image."""
    paths = folder(tmp_path, [(64, 120) if n == 8 else (64, 90 - n) for n in range(24)])
    paths[10], paths[11] = tmp_path / "none.png", tmp_path / "nor.png"
    whole = Photos(paths, SETTINGS, None, None)
    groups = [Group((2 * n, 2 * n + 1), (64, 96)) for n in range(12)]

    def found(workers: int) -> tuple[list[object], Batches]:
        batches = photos.batches(whole, groups, workers, fill=3, pin=False)
        return [(shots.images.tolist(), shots.indices, shots.sizes, shots.unreadable) for shots in batches], batches

    (here, _), (there, shared) = found(0), found(1)
    assert len(here) == 12
    assert here == there
    taken = [parcel.taken for parcel in shared.loader]
    assert taken[3:6] == [(3, 64, 96, 3) if shared_slots.forks() else None, None, None]


def test_images_stay_while_the_network_may_have_them(tmp_path: Path) -> None:
    paths = folder(tmp_path, [(64, 90)] * 12)
    whole = Photos(paths, SETTINGS, None, None)
    held: list[Shots] = []
    for shots in photos.batches(whole, whole.groups(1, grain=32), 1, fill=0, pin=False):
        held = [*held[-photos.AHEAD :], shots]
        time.sleep(0.05)  # for the loader's process to read as far as it may
        for each in held:
            assert (each.images[..., :90] == 10 + each.indices[0]).all()


def test_where_memory_cannot_be_pinned_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([0, 2, 0])
    runtime = SimpleNamespace(cudaHostRegister=lambda *_: next(answers))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "zeros", mock.Mock(side_effect=RuntimeError("CUDA error: out of memory")))
    monkeypatch.setattr(shared_slots, "_pinned", [])
    slots = [memoryview(bytearray(8)) for _ in range(3)]
    shared_slots.pin(slots)
    assert shared_slots._pinned == slots[:1]
    assert torch.zeros.call_count == 1


def test_a_picture_is_kept_as_it_was_read_unless_it_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = folder(tmp_path, [(64, 90 - n) for n in range(12)])
    monkeypatch.setattr(pictures, "LARGEST", 64 * 88 * 3)  # without room for the first two
    room = pictures.room_for(11)
    assert len(room.slots) == (11 if shared_slots.forks() else 0)
    whole = Photos(paths, SETTINGS, None, None, room)
    for shots in photos.batches(whole, whole.groups(2, grain=32), 1, fill=0, pin=False):
        for index, size, kept in zip(shots.indices, shots.originals, shots.kept, strict=True):
            if index < 2 or not room.slots:
                assert kept is None
            else:
                found = room.get(kept)
                assert found.shape == (*size, 3)
                assert (found == 10 + index).all()


def test_no_picture_is_kept_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * pictures.LARGEST))
    assert pictures.room_for(13) is pictures.NOWHERE
    assert len(pictures.room_for(12).slots) == (12 if shared_slots.forks() else 0)
