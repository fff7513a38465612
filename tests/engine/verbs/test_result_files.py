"""Results written by processes beside the network's: alike for any number of them, and none outlives the job."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former_mcp.engine import result_files, session
from mask2former_mcp.engine.classes import Classes, Entry
from mask2former_mcp.engine.pictures import Pictures
from mask2former_mcp.engine.postprocess import Instances, Panoptic, Segment
from mask2former_mcp.engine.scoring import Outcome
from mask2former_mcp.spec.experiment import load

Spec = Callable[..., dict[str, Any]]
CLASSES = Classes(tuple(Entry(3 * i, f"c{i}", i < 3, (60 * i, 200 - 50 * i, 90)) for i in range(1, 4)))
PATIENCE_S = 60


def outcome(seed: int, size: tuple[int, int]) -> Outcome:
    rows, columns = np.indices(size)
    ids = ((columns // (5 + seed)) % 3 + 1).astype(np.uint8) * (rows > seed)
    masks = tuple(coco_mask.encode(np.asfortranarray((ids == k).astype(np.uint8))) for k in (1, 2))
    instances = Instances(np.array([1, 2]), np.array([0.9, 0.4 + 0.01 * seed]), masks)
    return Outcome(np.maximum(ids, 1), Panoptic(ids, tuple(Segment(k, k, 0.9) for k in (1, 2, 3))), instances)


def folder_of_images(root: Path, count: int) -> list[Path]:
    root.mkdir()
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 255, (30 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / f"{i:02d}.png")
    return sorted(root.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_writer_and_several_write_the_same_files_in_whatever_order_images_come(tiny: Spec, tmp_path: Path) -> None:
    paths = folder_of_images(tmp_path / "photos", 12)
    spec = load("inference", tiny(inference__checkpoint="a.pth", dataset__test__img_dir=str(tmp_path / "photos")))
    written = []
    for processes, order in ((1, range(12)), (3, reversed(range(12)))):
        out = tmp_path / f"by_{processes}"
        out.mkdir()
        files = result_files.image_files(out, paths, CLASSES, spec)
        with result_files.writing(files, processes=processes) as writer:
            for index in order:
                writer.add([(index, outcome(index, (30 + index, 40)), None)])
        written.append(contents(out))
    assert written[0] == written[1]
    assert len([name for name in written[0] if name.startswith("panoptic/")]) == 12
    assert [i["file_name"] for i in json.loads(written[0]["images.json"])] == [p.name for p in paths]
    assert {row["category_id"] for row in json.loads(written[0]["instances.json"])} == {3, 6}
    segments = [s for a in json.loads(written[0]["panoptic.json"])["annotations"] for s in a["segments_info"]]
    assert {(s["category_id"], s["score"]) for s in segments} == {(3, 0.9), (6, 0.9), (9, 0.9)}


def test_instances_that_are_too_doubtful_or_have_no_pixel_are_not_listed(tiny: Spec, tmp_path: Path) -> None:
    paths = folder_of_images(tmp_path / "photos", 1)
    spec = load("inference", tiny(inference__checkpoint="a.pth", dataset__test__img_dir=str(tmp_path / "photos")))
    scores = np.array([0.9, 0.8, spec.inference.min_score, spec.inference.min_score / 2])
    masks = [np.zeros((30, 40), np.uint8) for _ in scores]
    for at, mask in enumerate(masks):
        mask[at : 2 * at, 3:7] = 1  # the first one has none
    encoded = tuple(coco_mask.encode(np.asfortranarray(mask)) for mask in masks)
    found = Outcome(np.ones((30, 40), np.uint8), None, Instances(np.array([1, 2, 3, 1]), scores, encoded))
    with result_files.writing(result_files.image_files(tmp_path, paths, CLASSES, spec), processes=1) as writer:
        writer.add([(0, found, None)])
    rows = json.loads((tmp_path / "instances.json").read_text())
    assert [(row["category_id"], row["bbox"]) for row in rows] == [(6, [3, 1, 4, 1]), (9, [3, 2, 4, 2])]


def test_a_picture_that_was_kept_is_not_read_again_unless_another_took_its_slot(tiny: Spec, tmp_path: Path) -> None:
    (path,) = folder_of_images(tmp_path / "photos", 1)
    spec = load("inference", tiny(inference__checkpoint="a.pth", dataset__test__img_dir=str(tmp_path / "photos")))
    room, pixels = Pictures([memoryview(bytearray(4000))] * 2), np.asarray(Image.open(path))
    first = room.keep(pixels, 3)
    kept = room.keep(255 - pixels, 5)
    assert kept is not None
    np.testing.assert_array_equal(room.get(kept), 255 - pixels)
    written = []
    for at in (None, first, room.keep(pixels, 7)):
        out = tmp_path / f"by_{len(written)}"
        out.mkdir()
        with result_files.writing(result_files.image_files(out, [path], CLASSES, spec, room)) as writer:
            writer.add([(0, outcome(0, (30, 40)), at)])
        written.append(contents(out))
        if at == first:
            path.unlink()
    assert written[0] == written[1] == written[2]


def test_who_is_interrupted_does_not_wait_for_all_that_was_to_be_written(tiny: Spec, tmp_path: Path) -> None:
    paths = folder_of_images(tmp_path / "photos", 80)
    spec = load("inference", tiny(inference__checkpoint="a.pth", dataset__test__img_dir=str(tmp_path / "photos")))
    found = [(index, outcome(index, (30 + index, 40)), None) for index in range(80)]
    files = result_files.image_files(tmp_path, paths, CLASSES, spec)

    def interrupted() -> None:
        with result_files.writing(files, processes=1) as writer:
            writer.add(found)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(list(tmp_path.glob("*.jpg"))) < 80
    assert not (tmp_path / "images.json").exists()


def test_what_a_writer_cannot_write_ends_the_job_with_the_cause_and_the_image(
    tiny: Spec, weights: Path, tmp_path: Path
) -> None:
    folder_of_images(tmp_path / "photos", 3)
    (tmp_path / "inference" / "01.jpg").mkdir(parents=True)
    spec = tiny(inference__checkpoint=str(weights), dataset__test__img_dir=str(tmp_path / "photos"))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    assert session.run("inference", tmp_path / "spec.yaml", [f"results_dir={tmp_path}"]) == 1
    last = json.loads((tmp_path / "inference" / "status.json").read_text().splitlines()[-1])
    assert last["message"].startswith("File system error: 01.png: its results could not be written: ")
    assert "directory" in last["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_writer_outlives_a_job_that_is_ended(
    number: signal.Signals, tiny: Spec, weights: Path, tmp_path: Path
) -> None:
    folder_of_images(tmp_path / "photos", 2)
    for copy in range(400):
        os.link(tmp_path / "photos" / "00.png", tmp_path / "photos" / f"again_{copy}.png")
    spec = tiny(inference__checkpoint=str(weights), dataset__test__img_dir=str(tmp_path / "photos"))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "mask2former_mcp.engine", "inference", "-e", str(tmp_path / "spec.yaml")]
    job = subprocess.Popen([*command, f"results_dir={tmp_path}"], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert any("image 1/" in line for line in job.stdout)  # it segments
    writers = psutil.Process(job.pid).children(recursive=True)
    assert writers
    job.send_signal(number)
    assert job.wait(PATIENCE_S) == (-number if number == signal.SIGKILL else 128 + number)
    job.stdout.close()
    assert psutil.wait_procs(writers, timeout=PATIENCE_S)[1] == []
